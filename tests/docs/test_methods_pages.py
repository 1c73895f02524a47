"""docs/methods has a page a method, with its settings as the code has them."""

import re
from pathlib import Path

import pytest

from ttc_core.methods import METHODS
from ttc_core.methods.settings import MovingSettings

PAGES = Path(__file__).parents[2] / "docs" / "methods"
CLASSES = (10, 100, 1000)
PARTS = (
    *("How it answers and learns", "Where it comes from", "Settings", "What it costs"),
    *("What it brings, and where it fails", "Where it is"),
)


def shown(value):
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, tuple):
        return ", ".join(map(shown, value))
    return value if isinstance(value, str) else f"{value:g}"


def settings_table(name):
    """A line a setting: its defaults by the number of classes, one where they are the same."""
    kind = METHODS[name].Settings
    made = [kind.create(name, classes, {}) for classes in CLASSES]
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for field, about in kind.model_fields.items():
        if field == "moving":
            lines += [
                f"| `{name}.moving.{each}` | {shown(inner.default)} | {inner.description} |"
                for each, inner in MovingSettings.model_fields.items()
            ]
            continue
        values = [shown(getattr(one, field)) for one in made]
        values = values[:1] if len(set(values)) == 1 else values
        assert about.description, f"{name}.{field} has no description"
        meaning = about.description.replace("|", "\\|")
        lines.append(f"| `{name}.{field}` | {' / '.join(values)} | {meaning} |")
    return "\n".join(lines)


@pytest.mark.parametrize("name", METHODS)
def test_a_page_has_the_settings_as_the_code_has_them(name):
    """Every one with its defaults for CIFAR-10, CIFAR-100 and ImageNet."""
    text = (PAGES / f"{name}.md").read_text()
    (written,) = re.findall(
        rf"<!-- settings {name} -->\n\n(.*?)\n\n<!-- /settings -->", text, re.DOTALL
    )
    assert written == settings_table(name)


@pytest.mark.parametrize("name", METHODS)
def test_a_page_has_all_its_parts(name):
    """In the same order, and the file that it names is there."""
    text = (PAGES / f"{name}.md").read_text()
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == list(PARTS)
    files = re.findall(r"`(ttc_core/[\w/]+\.py)`", text.partition("## Where it is")[2])
    assert f"ttc_core/methods/{name}.py" in files
    assert all((PAGES.parents[1] / file).exists() for file in files)


def test_settings_that_pages_name_are_accepted():
    """METHOD.SETTING=VALUE, wherever a page of docs says it."""
    found = set()
    for page in PAGES.parent.rglob("*.md"):
        named = re.findall(r"`(?:[^`]* )?(\w+)\.(\w+)=([\w.]+)`", page.read_text())
        found |= {each for each in named if each[0] in METHODS}
    assert len(found) > 10
    for name, setting, value in found:
        METHODS[name].Settings.create(name, 10, {setting: value})


def test_no_page_is_of_a_method_that_is_none():
    """And the index leads to each."""
    assert {page.stem for page in PAGES.glob("*.md")} == {"index", *METHODS}
    index = (PAGES / "index.md").read_text()
    assert re.findall(r"^\| `(\w+)` .*\[\1\]\(\1\.md\) \|$", index, re.MULTILINE) == list(METHODS)
