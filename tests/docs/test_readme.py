"""README.md shows the way in: what is where comes first, and is there."""

import re
from pathlib import Path

import pytest

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


def test_it_is_read_in_one_go() -> None:
    """What is longer is a page of docs/."""
    assert len(README.splitlines()) < 150


BULLET = re.compile(r"^- \*\*.+?\]\((docs/[\w-]+\.md)\)\)\.$", re.DOTALL | re.MULTILINE)


def test_its_numbers_are_those_of_the_pages_that_it_names() -> None:
    """Each that has a point stands on the page at the end of its sentence."""
    numbers = README.partition("## Our numbers")[2].partition("\n## ")[0]
    bullets = list(BULLET.finditer(numbers))
    assert len(bullets) == numbers.count("\n- ") > 3
    for bullet in bullets:
        told = set(re.findall(r"\d+\.\d+", bullet[0]))
        there = set(re.findall(r"\d+\.\d+", (ROOT / bullet[1]).read_text()))
        assert told
        assert told <= there, f"{bullet[1]} lacks {told - there}"


PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "examples/README")),
    ROOT / "conformance" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "docker" / "runbooks").glob("*.md")),
]


def anchors(page: Path) -> set[str]:
    """Those of a page's headings on a repository's page: small letters, dashes for spaces."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere_on_a_repositorys_page(page: Path) -> None:
    """To a file that is there, and a heading in it; `make docs` says the same of the site."""
    links = re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text())
    for target, anchor in links:
        file = page.parent / target if target else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), f"{target}#{anchor}"
