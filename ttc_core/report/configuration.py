"""A method as it was set: what a line of a table, a curve of a figure is about, and its name."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from ttc_core.guard import default_mode
from ttc_core.methods import METHODS
from ttc_core.presets import SUPERVISED
from ttc_core.rows import UNKNOWN, as_key, differing, setting, value_text
from ttc_core.supervised import SupervisedSettings

# The paper's methods, in its order; others follow in the order of the rows.
_RANK = {name: rank for rank, name in enumerate(METHODS)}


@dataclass(frozen=True)
class Configuration:
    """A method and its settings.

    Attributes:
        method: its name, as in rows.
        settings: all of them, as text.
        classes: of the network, on which defaults depend; None where that is not known.
        changes: the settings that are not the method's defaults; None where these are not known:
            old rows do not tell the classes, and those of one's own method are in its code.
        told: what a reader is told of the settings: the changes and, where others of the method
            have the same ones, what tells it from them.
    """

    method: str
    settings: str
    classes: int | None
    changes: Mapping[str, Any] | None = field(default=None, compare=False)
    told: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def label(self) -> str:
        """The name in full, as rows write it."""
        return self._with_settings(self.method)

    @property
    def title(self) -> str:
        """The label as people read it: the paper's methods in capitals."""
        return self._with_settings(method_title(self.method))

    @property
    def is_known(self) -> bool:
        """Whether its defaults are."""
        return self.changes is not None

    @property
    def rank(self) -> int:
        """The place among the paper's methods; behind them for any other."""
        return _RANK.get(self.method, len(_RANK))

    def _with_settings(self, method: str) -> str:
        settings = ", ".join(f"{name}={value_text(value)}" for name, value in self.told.items())
        return f"{method} ({settings})" if settings else method


def method_title(method: str) -> str:
    """A method's name as people read it."""
    return method.upper() if method in _RANK else method


def configurations(rows: Iterable[Mapping[str, Any]]) -> list[Configuration]:
    """The configuration of each row; different ones of one network have different labels."""
    rows = list(rows)
    classes = {row.get("model"): row["classes"] for row in rows if row.get("classes")}
    bare = [
        Configuration(
            row["method"],
            as_key(_settings(row)),
            classes.get(row.get("model")) if row["method"] in (*METHODS, SUPERVISED) else None,
        )
        for row in rows
    ]
    given = {one: _settings(row) for one, row in zip(bare, rows, strict=True)}
    alike: dict[str, list[Configuration]] = {}
    for one, settings in given.items():
        changes = _changes(one.method, settings, one.classes)
        key = as_key([one.method, one.classes, changes])
        alike.setdefault(key, []).append(replace(one, changes=changes))
    found = {}
    for same in alike.values():
        several = differing([given[one] for one in same])
        for one in same:
            more = {name: given[one].get(name, UNKNOWN) for name in several}
            told = {**(one.changes or {}), **more}
            found[one] = replace(one, told=told)
    return [found[one] for one in bare]


def _settings(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a method was set to, how it was watched, and by which record it told its answers."""
    told = setting(row)
    record = {name: told[name] for name in ("record_temperature",) if name in told}
    return {**(row.get("settings") or {}), "guard": told.get("guard", "off"), **record}


def _changes(
    method: str, settings: Mapping[str, Any], classes: int | None
) -> dict[str, Any] | None:
    if classes is None:
        return None
    usual = _defaults(method, classes)
    changes = {
        name: value for name, value in settings.items() if as_key(usual.get(name)) != as_key(value)
    }
    # Off is what rows from before there was a guard are.
    if changes.get("guard") in ("off", default_mode(method)):
        del changes["guard"]
    changes.pop("record_temperature", None)  # the network's: told where it differs
    return changes


@cache
def _defaults(method: str, classes: int) -> dict[str, Any]:
    """A method's settings where nothing is set, as a row has them."""
    declared = SupervisedSettings if method == SUPERVISED else METHODS[method].Settings  # type: ignore[attr-defined]
    return dict(declared.create(method, classes, {}).model_dump(mode="json"))
