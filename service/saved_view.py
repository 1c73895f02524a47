"""What a person sees of saved states: a table, a line a stream, or one JSON object a stream."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from service.kept import kept_of
from service.schemas import KeptOfStream
from service.state_folder import stream_of
from ttc_core.errors import shown
from ttc_core.state_description import Description, describe

NONE = "–"  # noqa: RUF001  the dash of a cell that has nothing


@dataclass(frozen=True)
class SavedStream:
    """A saved state: whose it is, what its file says, and what the service kept beside it."""

    stream: str
    file: Path
    about: Description
    kept: KeptOfStream


def read_saved(file: Path) -> SavedStream:
    """Read what a state file says of its stream; a name that no stream has stands for itself.

    Raises:
        StateError: it is missing or no state file.
    """
    stream = stream_of(file.name) or shown(file.name)
    about = describe(file)
    return SavedStream(stream, file, about, kept_of(stream, about.of_stream))


def saved_line(saved: SavedStream) -> str:
    """All that a file says of its stream, as a line of JSON; times are seconds since 1970."""
    about = saved.about
    return json.dumps(
        {
            "stream": saved.stream,
            "file": str(saved.file),
            "method": about.method,
            "model": about.model,
            "settings": _finite(about.settings),
            **saved.kept.model_dump(mode="json", exclude={"answers_from"}),
            "counters": _finite(about.counters),
        }
    )


def show(saved: Sequence[SavedStream], console: Console) -> None:
    """Print a table with one line a stream; columns that would be empty are left out.

    Method and model stand above where they are the same for all. A line ends at a terminal's edge.
    """
    owners = [f"{shown(one.about.method)} on {shown(one.about.model)}" for one in saved]
    is_mixed = len(set(owners)) > 1
    columns = {
        "stream": [shown(one.stream) for one in saved],
        "method and model": owners if is_mixed else [],
        # Whoever saves without the service does not count them.
        "images": [f"{one.kept.images:,}" if one.about.of_stream else NONE for one in saved],
        "steps": [NONE if (steps := one.about.steps) is None else f"{steps:,}" for one in saved],
        "guard": [one.about.held or NONE for one in saved],
        "camera fault": [_fault(one.kept) for one in saved],
        "last act": [_last_act(one.kept) for one in saved],
        "labels right": [_labels(one.kept) for one in saved],
        "good states": [_good_states(one.about) for one in saved],
    }
    columns = {name: cells for name, cells in columns.items() if {*cells} - {NONE}}
    table = Table(box=None, padding=(0, 3, 0, 0))
    for name in columns:
        is_number = name in ("images", "steps", "labels right")
        table.add_column(name, justify="right" if is_number else "left", no_wrap=True)
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*map(Text, cells))
    table.width = Measurement.get(console, console.options.update(width=100_000), table).maximum
    if not is_mixed:
        console.print(Text(owners[0]))
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as printed:
        console.print(table, crop=False)
    for line in printed.get().splitlines():
        console.out(line.rstrip(), highlight=False)


def _labels(kept: KeptOfStream) -> str:
    return f"{kept.correct:,} of {kept.labelled:,}" if kept.labelled else NONE


def _good_states(about: Description) -> str:
    return ", ".join(f"{version} at {images}" for version, images in about.snapshots) or NONE


def _fault(kept: KeptOfStream) -> str:
    """The fault that its frames looked like last, else how many did of each kind."""
    if kept.suspect is not None:
        since = "" if kept.suspect_since is None else f" since {_time(kept.suspect_since)}"
        return f"{shown(kept.suspect)}{since}, {kept.suspect_in_a_row:,} in a row"
    over = ", ".join(f"{shown(kind)} {count:,}" for kind, count in kept.suspects.items() if count)
    return f"over ({over})" if over else NONE


def _last_act(kept: KeptOfStream) -> str:
    if not kept.acts:
        return NONE
    act = kept.acts[-1]
    observed = ", observed" if act.observed else ""
    return f"{shown(act.action)}, {shown(act.reason)}{observed}, {_time(act.time)}"


def _time(seconds: float) -> str:
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%FT%TZ}"
    except (ValueError, OverflowError, OSError):  # a stranger's number
        return f"{seconds:g}"


def _finite(value: Any) -> Any:
    """JSON has no numbers beyond the finite ones."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
