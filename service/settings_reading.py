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

from service.settings import SECRETS, Settings
from service.settings_file import everyone_may_read, read_toml
from service.settings_words import accepted_in_file, default, flag, no_flag, variable
from ttc_core.errors import shown

# Of a refused value, in its sentence.
MOST_CHARACTERS = 200
# Of unknown names, those that are told at once.
MOST_UNKNOWN = 10
# What it sets beside a Service named ttc.
_OF_KUBERNETES = re.compile(r"TTC_(SERVICE_(HOST|PORT)|PORT_[0-9]+_)")
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
        ValueError: a value is not accepted, or the file cannot be read; the sentence names the
            flag and the variable, or the file and the name in it.
    """
    outside = {name.upper(): value for name, value in os.environ.items()}
    path = given["config"] if "config" in given else outside.get(variable("config"))
    try:
        said = _in_file(Path(path)) if path else {}
    except RecursionError:
        raise ValueError(f"{shown(path)} is nested too deeply.") from None
    of_variables = {name for name in Settings.model_fields if variable(name) in outside}
    of_file = {name: said[name] for name in said if name not in of_variables | given.keys()}
    try:
        settings = Settings(**of_file, **given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        where = f"{flag(name)} (or {variable(name)})"
        if name in of_file:
            where = f"{shown(path)}: {name}"
        raise ValueError(_refusal(where, name, first["msg"], first["input"])) from None
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


def _in_file(path: Path) -> dict[str, Any]:
    """What a file says, by the settings' names; bounds are left to `Settings`."""
    said = read_toml(path)
    unknown = said.keys() - (Settings.model_fields.keys() - {"config"})
    if unknown:
        first = sorted(unknown)[:MOST_UNKNOWN]
        raise ValueError("\n".join(_unknown(path, name, said[name]) for name in first))
    if isinstance(said.get("set"), dict):
        pairs = list(_pairs(path, said["set"]))
        said["set"] = [f"{key}={value}" for key, value in pairs]
        for key, count in Counter(key for key, _ in pairs).items():
            if count > 1:
                raise ValueError(f"{shown(path)}: {shown(key)} of [set] is there twice.")
    for name, value in said.items():
        # JSON has lists where we have tuples, and texts where we have paths; else its kinds are
        # TOML's. No setting is a date, or takes an object.
        text = json.dumps(value, default=lambda _: {})
        try:
            kind: Any = Settings.model_fields[name].annotation
            TypeAdapter(kind).validate_json(text, strict=True)
        except ValidationError as error:
            what = f"{error.errors()[0]['msg']}; accepted: {accepted_in_file(name)}"
            raise ValueError(_refusal(f"{shown(path)}: {name}", name, what, value)) from None
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in said.items()
    }


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


def _refusal(where: str, name: str, said: str, got: object) -> str:
    # Not even a wrong secret is shown.
    came = "" if name in SECRETS else f"; got {repr(got)[:MOST_CHARACTERS]}"
    return f"{where}: {said.removeprefix('Value error, ')}{came}."


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
