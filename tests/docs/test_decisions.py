"""Each decision has a day, a status and tests that hold it, which are there."""

import ast
import re
from datetime import date
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
DECISIONS = (TESTS.parent / "DECISIONS.md").read_text()
HEADING = r"## (\d{4}) · (.+) · (\d{4}-\d{2}-\d{2}) · (.+)"
ENTRIES = re.split(r"^(?=## )", DECISIONS, flags=re.MULTILINE)[1:]
NUMBERS = [entry[3:7] for entry in ENTRIES]


@cache
def functions(file: str) -> set[str]:
    """The names of all functions in a file under tests/."""
    return {
        node.name
        for node in ast.walk(ast.parse((TESTS / file).read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_decisions_are_numbered_without_a_gap() -> None:
    """None is deleted: one that no longer holds says which took its place."""
    assert [f"{number:04}" for number in range(1, len(ENTRIES) + 1)] == NUMBERS


@pytest.mark.parametrize("entry", ENTRIES, ids=NUMBERS)
def test_a_decision_has_its_day_and_its_status(entry: str) -> None:
    """A status that names another decision names a later one."""
    heading = re.fullmatch(HEADING, entry.splitlines()[0])
    assert heading
    number, _, day, status = heading.groups()
    assert date.fromisoformat(day)
    others = re.fullmatch(r"(?:changed|superseded) by (\d{4}(?:, \d{4})*)", status)
    assert status == "accepted" or others
    if others:
        assert all(number < other and other in NUMBERS for other in others[1].split(", "))


@pytest.mark.parametrize("entry", ENTRIES, ids=NUMBERS)
def test_the_tests_that_hold_a_decision_are_there(entry: str) -> None:
    """A file under tests/, and functions in it: `file.py::test_a`, `::test_b`."""
    held_by = entry.partition("\nHeld by: ")[2]
    named = re.findall(r"`([a-z0-9_/]+\.py)?(?:::(test_\w+))?`", held_by)
    assert named or held_by.startswith("no test"), "name the tests that hold it, or say why none"
    file = ""
    for path, function in named:
        file = path or file
        found = functions(file)
        assert not function or function in found
