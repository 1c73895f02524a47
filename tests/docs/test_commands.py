"""What pages tell people to run beside ttc is there: modules with their options, targets, tests.

The lines of ttc and curl are held by e2e/test_documented_commands.py.
"""

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
# In a block a line of its own, in a sentence between backticks.
CODE = re.compile(r"^```sh\n(.*?)^```|(?<!`)`([^`]+)`(?!`)", re.DOTALL | re.MULTILINE)


def commands() -> Iterator[str]:
    """Each line that pages show as code, on one line."""
    for page in PAGES:
        for block, said in CODE.findall(page.read_text()):
            whole = said.replace("\n", " ") or block.replace("\\\n", " ")
            yield from (line.partition("#")[0].strip() for line in whole.splitlines())


def those_of(start: str) -> list[str]:
    return sorted({line for line in commands() if line.startswith(start)})


@pytest.mark.parametrize("line", those_of("python -m benchmarks."))
def test_a_benchmark_has_the_options_that_are_shown(line):
    """They are read as its command line would; nothing is run."""
    _, _, module, *words = shlex.split(line.partition(" > ")[0])
    found = importlib.import_module(module)
    if hasattr(found, "__path__"):  # a package is run by its __main__
        found = importlib.import_module(f"{module}.__main__")
    main = getattr(found, "main", None)
    if not isinstance(main, click.Command):
        assert words == []
        return
    # The reader's own file.
    main.make_context(module, [word for word in words if word != "bench.txt"]).close()


@pytest.mark.parametrize("line", those_of("make "))
def test_a_target_that_is_shown_is_one(line):
    targets = re.findall(r"^([\w-]+(?: [\w-]+)*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert line.split()[1] in {name for names in targets for name in names.split()}


@pytest.mark.parametrize("line", those_of("pytest "))
def test_tests_that_are_named_are_there(line):
    assert all((ROOT / word).exists() for word in line.split() if word.startswith("tests/"))


def test_there_are_such_commands():
    """The pages are read."""
    assert len(those_of("python -m benchmarks.")) > 10
    assert len(those_of("make ")) > 8
    assert len(those_of("pytest ")) > 1


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "methods").glob("*.md")))
def test_links_of_the_methods_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target
