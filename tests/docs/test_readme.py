"""README.md shows the way in: what is where comes first, and is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
FIRST_SCREEN = README.splitlines()[:40]


def test_the_walk_and_the_rooms_are_on_the_first_screen() -> None:
    """Then the two commands, then all the others."""
    shown = "\n".join(FIRST_SCREEN)
    assert "**The walk of one image**" in shown
    assert "**The rooms**" in shown
    assert shown.count("```") == 2
    headings = re.findall(r"^## (.+)$", README, re.MULTILINE)
    assert headings[:2] == ["Two commands", "Use it"]


def test_the_rooms_it_names_are_there() -> None:
    """A file or folder that has moved is not where the tree says it is."""
    folder = ROOT
    tree = README.split("```")[1].splitlines()[1:]
    assert len(tree) > 10
    for line in tree:
        names = re.match(r" *((?:[\w.]+(?:/|\.py) )+)", line)
        assert names, line
        inside = folder if line.startswith(" ") else ROOT
        for name in names[1].split():
            assert (inside / name).exists(), line
        if not line.startswith(" "):
            folder = ROOT / names[1].split()[0]


def test_links_lead_somewhere() -> None:
    """Those to files of this repository."""
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
