"""Figures that the pages quote stand where the pages say that they do.

Below what it says, a section names its places: a line that begins with "Source:" has LOG.md,
DECISIONS.md or a file of docs, a part of it in *asterisks*, and the command. Every number of the
section stands there; where no place is named there are no figures.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
NAMES = ("operations", "peers", "extending", "when-not", "objections", "faq", "evidence")
PAGES = [*(DOCS / f"{name}.md" for name in NAMES), *sorted((DOCS / "methods").glob("*.md"))]
PLACE = re.compile(r"\b((?:LOG|DECISIONS)\.md|docs/[\w./-]+\.(?:md|csv))(?:, \*([^*]+)\*)?")
# Code, addresses, tables made by a command or held against the code elsewhere, names of versions.
NO_FIGURES = re.compile(
    r"<!-- (\w+).*?<!-- /\1 -->|^(?: {4,}|\t).*?$|`[^`]*`|\]\([^)]*\)|[A-Za-z_]-?\d[\d.]*",
    re.DOTALL | re.MULTILINE,
)
NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
# What can only be measured: a fraction, or a share.
FIGURE = re.compile(r"\d+\.\d+|\d+(?= %)")


def sections(text: str) -> Iterator[tuple[str, str]]:
    """Each heading with what is below it, down to the next."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    heads = re.split(r"^#+ (.+)$", text, flags=re.MULTILINE)
    yield from zip(heads[1::2], heads[2::2], strict=True)


def numbers(text: str) -> list[str]:
    """As they are written, without the commas of thousands."""
    return [found.replace(",", "") for found in NUMBER.findall(text)]


def source(path: str, part: str | None) -> str:
    """The text of a file, or of all its parts whose heading has these words."""
    text = (ROOT / path).read_text()
    if part is None:
        return text
    kept = [
        body
        for head, body in re.findall(r"^##+ ([^\n]+)\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.M)
        if part in head
    ]
    assert kept, f"{path} has no part {part!r}"
    return "\n".join(kept)


def cases() -> Iterator[object]:
    for page in PAGES:
        for head, body in sections(page.read_text()):
            name = f"{page.relative_to(DOCS)}: {head}"
            yield pytest.param(body, id=name)


@pytest.mark.parametrize("body", list(cases()))
def test_every_figure_stands_in_its_source(body):
    """To the last digit, whatever its sign."""
    said, _, named = body.partition("\nSource: ")
    said = NO_FIGURES.sub(" ", said)
    if not named:
        assert FIGURE.findall(said) == []
        return
    places = PLACE.findall(named)
    assert places, "Source: names no file"
    # A page of ours has its commands itself.
    assert "`" in named or all(path.startswith("docs/") for path, _ in places), "no command"
    known = set(numbers("\n".join(source(path, part or None) for path, part in places)))
    assert [one for one in numbers(said) if len(one) > 1 and one not in known] == []
