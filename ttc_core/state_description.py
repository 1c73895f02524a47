"""What a state file says of itself, to be shown: whose it is, how far, and who answers."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ttc_core.errors import shown
from ttc_core.methods.contract import HELD
from ttc_core.state_file import (
    COUNTERS,
    SETTINGS,
    Counters,
    is_moment,
    kept_beside,
    parsed,
    read_header,
)


@dataclass(frozen=True)
class Description:
    """What a state file says of itself; its texts are as they stand there, whoever wrote them.

    Attributes:
        method, model: as they were named; settings: the method's, by name.
        counters: numbers and texts by section.
        of_stream: what was kept beside the state.
    """

    method: str
    model: str
    settings: dict[str, Any]
    counters: Counters
    of_stream: dict[str, Any]

    @property
    def steps(self) -> int | None:
        """Optimizer steps; None of a method that takes none."""
        steps = self.counters.get("counters", {}).get("steps")
        return steps if isinstance(steps, int) else None

    @property
    def snapshots(self) -> list[tuple[str, str]]:
        """A guard's good states: version, and after how many images it was."""
        return [
            (shown(about.get("version")), shown(about.get("images")))
            for section, about in self.counters.items()
            if re.fullmatch(r"guard\.snapshot\d+", section)
        ]

    @property
    def held(self) -> str | None:
        """Whether and since when the source answers the stream, in words; None: no guard was on."""
        watch = self.counters.get("guard")
        return None if watch is None else _held(watch, self.of_stream)


def describe(path: Path) -> Description:
    """Read what a state file says of itself.

    Raises:
        StateError: it is missing or no state file.
    """
    texts = read_header(path)
    return Description(
        method=texts.get("method", ""),
        model=texts.get("model", ""),
        settings=parsed(path, texts, "settings", SETTINGS),
        counters=parsed(path, texts, "counters", COUNTERS),
        of_stream=kept_beside(path, texts),
    )


def _held(watch: Mapping[str, object], of_stream: Mapping[str, Any]) -> str:
    """Say whether and since when the source answers a stream, as the service told it.

    A guard that only observes holds nothing, and files of former versions, or of no service, do not
    say which it was.
    """
    mode = of_stream.get("mode")
    is_doubted = watch.get("held") or watch.get("suspected")
    if mode not in (None, HELD):
        doubted = f"doubted{_since(of_stream.get('doubted_since'))}, held with its guard on"
        return f"not held, but {doubted}" if is_doubted else "not held"
    if mode is None and not is_doubted:
        return "not held"
    held = f"held{_since(of_stream.get('held_since'))}"
    return held if mode == HELD else f"{held}, unless its guard only observed"


def _since(moment: object) -> str:
    return f" since {datetime.fromtimestamp(moment, UTC):%FT%TZ}" if is_moment(moment) else ""
