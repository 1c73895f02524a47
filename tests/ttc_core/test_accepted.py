"""What a setting takes, in words, and values as they were written."""

from datetime import date
from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel, Field

from ttc_core.accepted import accepted, written


class Kinds(BaseModel):
    whole: int = Field(0, ge=0, le=1000)
    least: float = Field(0, ge=0)
    share: float = Field(1, gt=0, le=1)
    decay: float = Field(0, ge=0, lt=1)
    open: float = Field(1, gt=0, lt=1)
    any: int = 0
    switch: bool = False
    choice: Literal["a", "b", "c"] = "a"
    perhaps: int | None = None
    pair: tuple[int, bool] = (0, False)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("whole", "a whole number from 0 to 1000"),
        ("least", "a number of 0 or more"),
        ("share", "a number above 0, up to 1"),
        ("decay", "a number from 0, below 1"),
        ("open", "a number above 0, below 1"),
        ("any", "a whole number"),
        ("switch", "true or false"),
        ("choice", "'a', 'b' or 'c'"),
        ("perhaps", "a whole number or none"),
        ("pair", "a whole number, true or false"),
    ],
)
def test_what_a_field_takes_is_said_in_words(name, words):
    assert accepted(Kinds.model_fields[name]) == words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (None, "none"),
        (0.5, "0.5"),
        ("a\nb", r"'a\nb'"),
        (Path("x"), "'x'"),
        ([1, "a"], "[1, 'a']"),
        ({"a": {"b": False}}, "{a = {b = false}}"),
        (date(2026, 11, 30), "2026-11-30"),
    ],
)
def test_a_value_is_shown_as_somebody_wrote_it(value, text):
    """Not as Python does."""
    assert written(value) == text
