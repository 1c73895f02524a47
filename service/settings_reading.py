"""Settings read from flags, variables, a file and defaults, with a sentence for what is wrong."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from service.settings import SECRETS, SWITCHES, Settings
from service.settings_file import everyone_may_read, read_toml
from service.settings_words import default, flag, no_flag, takes, variable
from ttc_core.accepted import FOLLOWS, OUR_OWN, what_is, written
from ttc_core.errors import shown

# Of a refused value, in its sentence.
MOST_CHARACTERS = 200
# Of unknown names, those that are told at once.
MOST_UNKNOWN = 10
# What it sets beside a Service named ttc.
_OF_KUBERNETES = re.compile(r"TTC_(SERVICE_(HOST|PORT)|PORT_[0-9]+_)")
# In place of a value that is told as wrong already; no setting takes it.
_REFUSED = object()
# What defaults follow from that are made when the settings are read.
_FOLLOWED: Mapping[str, tuple[str, ...]] = {
    "method": ("model", "paper"),
    "guard": ("paper", "method"),
    "adapt": ("paper",),
}


@dataclass(frozen=True)
class Origin:
    """Where a setting's value comes from.

    Attributes:
        kind: of the four, the first that says anything counts.
        name: of the flag, the variable, the file; of a default the settings that it follows from,
            where they have it differ from the usual one, as `paper, method`; else None.
    """

    kind: Literal["flag", "variable", "file", "default"]
    name: str | None = None

    def __str__(self) -> str:
        if self.kind == "default":
            return f"default, by {self.name}" if self.name else "default"
        return f"{self.kind} {self.name}"


@dataclass(frozen=True)
class Reading:
    """Settings, where each of them comes from, and what to beware of in that."""

    settings: Settings
    origins: Mapping[str, Origin]
    notices: tuple[str, ...]


def read(given: Mapping[str, Any]) -> Reading:
    """Combine flags, TTC_ variables, a file and defaults: the first that says anything counts.

    Args:
        given: what flags say, by the settings' names; `config` may be among them.

    Raises:
        ValueError: values are not accepted, or the file cannot be read; a sentence for each, in a
            line of its own, names the flag and the variable, or the file and the name in it.
    """
    outside = {name.upper(): value for name, value in os.environ.items()}
    path = given["config"] if "config" in given else outside.get(variable("config"))
    try:
        said, wrong = _in_file(Path(path)) if path else ({}, [])
    except RecursionError:
        raise ValueError(f"{shown(path)} is nested too deeply.") from None
    of_variables = {name for name in Settings.model_fields if variable(name) in outside}
    of_file = {name: said[name] for name in said if name not in of_variables | given.keys()}
    try:
        settings = Settings(**of_file, **given)
    except ValidationError as error:
        for name, first in _first_of_each(error):
            if of_file.get(name) is not _REFUSED:
                where = f"{flag(name)} (or {variable(name)})"
                where = f"{shown(path)}: {name}" if name in of_file else where
                wrong.append(_refusal(where, name, first, in_file=name in of_file))
    if wrong:
        raise ValueError("\n".join(wrong))
    origins = {}
    for name in Settings.model_fields:
        if name in given:
            is_none = given[name] is None or given[name] is False or given[name] == ()
            origins[name] = Origin("flag", no_flag(name) if is_none else flag(name))
        elif name in of_variables:
            origins[name] = Origin("variable", variable(name))
        elif name in of_file:
            origins[name] = Origin("file", str(path))
        else:
            origins[name] = Origin("default", _followed(settings, name))
    return Reading(settings, origins, tuple(_notices(path, said)))


def _first_of_each(error: ValidationError) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The settings that are wrong, and what is first wrong with each."""
    found: dict[str, Mapping[str, Any]] = {}
    for each in error.errors():
        if each["type"] != FOLLOWS:
            found.setdefault(str(each["loc"][0]), each)
    yield from found.items()


def _in_file(path: Path) -> tuple[dict[str, Any], list[str]]:
    """What a file says, by the settings' names, and sentences on what is wrong; bounds are left to
    `Settings`. A value of a wrong kind is _REFUSED: what goes with it is not to take it for unset.
    """
    said, found, wrong = read_toml(path), dict[str, Any](), list[str]()
    unknown = said.keys() - (Settings.model_fields.keys() - {"config"})
    wrong += [_unknown(path, name, said[name]) for name in sorted(unknown)[:MOST_UNKNOWN]]
    if isinstance(said.get("set"), dict):
        try:
            said["set"] = _of_table(path, said["set"])
        except ValueError as error:
            wrong.append(str(error))
            del said["set"]
    for name in (name for name in said if name not in unknown):
        value = said[name]
        # JSON has lists where we have tuples, and texts where we have paths; else its kinds are
        # TOML's. No setting is a date, or takes an object.
        text = json.dumps(value, default=lambda _: {})
        try:
            kind: Any = Settings.model_fields[name].annotation
            TypeAdapter(kind).validate_json(text, strict=True)
        except ValidationError:
            what = {"type": "kind", "input": value}
            wrong.append(_refusal(f"{shown(path)}: {name}", name, what, in_file=True))
            found[name] = _REFUSED
        else:
            found[name] = tuple(value) if isinstance(value, list) else value
    return found, wrong


def _of_table(path: Path, table: Mapping[str, Any]) -> list[str]:
    """A table [set] as `--set` has it.

    Raises:
        ValueError: it is none of hyperparameters, or one is there twice.
    """
    pairs = list(_pairs(path, table))
    for key, count in Counter(key for key, _ in pairs).items():
        if count > 1:
            raise ValueError(f"{shown(path)}: {shown(key)} of [set] is there twice.")
    return [f"{key}={value}" for key, value in pairs]


def _unknown(path: Path, name: str, value: object) -> str:
    if name == "config":
        return f"{shown(path)}: config is no setting of a file; none names another."
    if isinstance(value, dict):
        return f"{shown(path)}: there is no table [{shown(name)}]; [set] is the only one."
    plain = name.lower().replace("-", "_").removeprefix("ttc_")
    close = get_close_matches(plain, Settings.model_fields, 1, cutoff=0.8)
    hint = f"is {close[0]} meant?" if close else "ttc config shows all."
    return f"{shown(path)}: there is no setting {shown(name)}; {hint}"


def _pairs(path: Path, table: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, object]]:
    """METHOD.PARAM and value of a table [set]: "ttc.lr" = 1 and ttc.lr = 1 are the same."""
    for name, value in table.items():
        key = before + name
        if isinstance(value, dict):
            yield from _pairs(path, value, f"{key}.")
        elif "." not in key:
            hint = "; settings stand above [set]" if key in Settings.model_fields else ""
            raise ValueError(
                f"{shown(path)}: [set] takes METHOD.PARAM = VALUE; got {shown(key)}{hint}."
            )
        elif isinstance(value, str | int | float):
            yield key, value
        else:
            raise ValueError(
                f"{shown(path)}: {shown(key)} of [set] takes a text, a number, true or false; "
                f"got {shown(value)}."
            )


def _refusal(where: str, name: str, error: Mapping[str, Any], *, in_file: bool) -> str:
    """Say what is wrong with a setting.

    Args:
        where: it is set; error: as pydantic tells it.
        in_file: it is there, where a text has quotes.
    """
    # Not even a wrong secret is shown.
    came = "" if name in SECRETS else f"; got {written(error['input'])[:MOST_CHARACTERS]}"
    if error["type"] != OUR_OWN:
        return f"{where} takes {takes(name, in_file=in_file)}{came}."
    # That a switch is on is what it says.
    return f"{where}: {what_is(error, '')}{'' if name in SWITCHES else came}."


def _followed(settings: Settings, name: str) -> str | None:
    """The settings that have a default differ from the usual one, each by itself; None: none."""
    value, field = getattr(settings, name), Settings.model_fields[name]
    if value == default(name):
        return None
    followed = (
        each
        for each in _FOLLOWED.get(name, ())
        if value
        == field.get_default(
            call_default_factory=True, validated_data={each: getattr(settings, each)}
        )
    )
    return ", ".join(followed) or None


def _notices(path: object, said: Mapping[str, Any]) -> Iterator[str]:
    if SECRETS & said.keys() and everyone_may_read(Path(str(path))):
        yield (
            f"{shown(path)} has a token in it, and every user of this machine may read it: "
            f"chmod o-r {shown(path)}"
        )
    for name, meant in unknown_variables().items():
        yield f"{name} sets nothing here" + (f"; is {meant} meant?" if meant else ".")


def read_settings(given: Mapping[str, Any]) -> Settings:
    """The settings of `read`."""
    return read(given).settings


def unknown_variables() -> dict[str, str | None]:
    """The TTC_ variables that set nothing, each with the one that it may be meant to be."""
    known = [variable(name) for name in Settings.model_fields]
    unknown = {}
    for name in sorted(os.environ):
        upper = name.upper()
        if upper.startswith("TTC_") and upper not in known and not _OF_KUBERNETES.match(upper):
            close = get_close_matches(upper, known, 1, cutoff=0.8)
            unknown[name] = close[0] if close else None
    return unknown
