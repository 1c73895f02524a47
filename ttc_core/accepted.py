"""What a setting takes, in words, out of its type and its bounds; and a value as it was written.

For sentences that refuse a value: pydantic's own speak of inputs and instances, and Python writes
true as True. Knows neither torch nor any of the settings.
"""

import datetime
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ttc_core.errors import shown

_NUMBERS = {int: "a whole number", float: "a number"}
# Errors whose text is a sentence of ours, and those that only follow from others.
OUR_OWN, FOLLOWS = "value_error", "default_factory_not_called"


def bounds(metadata: Iterable[object]) -> dict[str, Any]:
    """The bounds among what a field's type has beside it: `ge`, `gt`, `le`, `lt` → number."""
    return {
        sign: getattr(each, sign)
        for each in metadata
        for sign in ("ge", "gt", "le", "lt")
        if getattr(each, sign, None) is not None
    }


def accepted(field: FieldInfo) -> str:
    """The values that a field takes: `a whole number from 0 to 1000`, `'adam' or 'sgd'`, …"""
    kind, args = field.annotation, typing.get_args(field.annotation)
    if kind is bool:
        return "true or false"
    if kind in _NUMBERS:
        return f"{_NUMBERS[kind]}{_within(bounds(field.metadata))}"
    if typing.get_origin(kind) is Literal:
        return _either(map(repr, args))
    if typing.get_origin(kind) in (Union, UnionType):
        some = [accepted(FieldInfo.from_annotation(each)) for each in args if each is not NoneType]
        return _either([*some, *(["none"] if NoneType in args else [])])
    if typing.get_origin(kind) is tuple and Ellipsis not in args:
        return ", ".join(accepted(FieldInfo.from_annotation(each)) for each in args)
    if typing.get_origin(kind) is tuple:
        return "a list"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "settings by their names"
    return "a text"


def _within(found: Mapping[str, Any]) -> str:
    lowest, highest = found.get("ge"), found.get("le")
    if lowest is not None and highest is not None:
        return f" from {lowest:.15g} to {highest:.15g}"
    if lowest is not None and "lt" not in found:
        return f" of {lowest:.15g} or more"
    parts = [f"from {lowest:.15g}"] if lowest is not None else []
    parts += [f"above {found['gt']:.15g}"] if "gt" in found else []
    parts += [f"up to {highest:.15g}"] if highest is not None else []
    parts += [f"below {found['lt']:.15g}"] if "lt" in found else []
    return f" {', '.join(parts)}" if parts else ""


def _either(words: Iterable[str]) -> str:
    *some, last = words
    return f"{', '.join(some)} or {last}" if some else last


def field_at(settings: type[BaseModel], place: Iterable[int | str]) -> FieldInfo | None:
    """The field at which pydantic found something wrong, inner settings' too; None: none."""
    found: FieldInfo | None = None
    for name in place:
        known: type[BaseModel] | None = settings
        if found is not None:
            kind = found.annotation
            known = kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
        if known is None or name not in known.model_fields:
            return found
        found = known.model_fields[str(name)]
    return found


def what_is(error: Mapping[str, Any], words: str) -> str:
    """What is to be said of a refused value, by pydantic's error and what is accepted in words."""
    if error["type"] == OUR_OWN:
        return str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "finite_number":
        words = words.replace("a number", "a finite number", 1)
    return f"accepted is {words}"


def written(value: object) -> str:
    """A value as somebody wrote it into a file or a command, as a sentence can hold it."""
    return shown(_written(value))


def _written(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | Path):
        return repr(str(value))
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name} = {_written(each)}' for name, each in value.items())}}}"
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    return str(value)
