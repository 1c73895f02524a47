"""Where a log of changes lies: a file that grows, those before it, and its head beside them.

`changes.jsonl` is of the one process that serves a folder; of several that share it each has its
own, `changes-WRITER.jsonl`. A file that is full is `changes.jsonl.000001`, the next one 000002.
What is in them is for `lines` to say.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

WRITER = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NAME = re.compile(
    rf"changes(?:-(?P<writer>{WRITER.pattern}))?\.jsonl(?:\.(?P<number>[0-9]{{6,12}}))?"
)
_HEAD = re.compile(rf"changes(?:-(?P<writer>{WRITER.pattern}))?\.head")


@dataclass(frozen=True)
class Place:
    """The files of one writer's log in a folder.

    Raises:
        ValueError: nobody's log may have that name.
    """

    folder: Path
    writer: str = ""

    def __post_init__(self) -> None:
        if self.writer and not WRITER.fullmatch(self.writer):
            raise ValueError(f"a writer's name is {WRITER.pattern}; got {self.writer!r}")

    @property
    def current(self) -> Path:
        """The file that grows."""
        return self.folder / f"{self._stem}.jsonl"

    @property
    def head(self) -> Path:
        """Which line was the last that was certainly on disk."""
        return self.folder / f"{self._stem}.head"

    def full(self, number: int) -> Path:
        """The file that was the `number`-th, once it is full; the first is 1."""
        return self.folder / f"{self._stem}.jsonl.{number:06}"

    def kept(self) -> dict[int, Path]:
        """The full files that are there, by number, in their order.

        Raises:
            OSError: the folder cannot be read.
        """
        found = {}
        for name, match in _named(self.folder):
            if match["number"] and (match["writer"] or "") == self.writer:
                found[int(match["number"])] = self.folder / name
        return dict(sorted(found.items()))

    @property
    def _stem(self) -> str:
        return f"changes-{self.writer}" if self.writer else "changes"


def opened(path: Path) -> BinaryIO | None:
    """Open a file of a log, to read it; None: it is none that can be, or went meanwhile: its writer
    drops the oldest, to make room.

    Raises:
        OSError: the system does not let it be read.
    """
    if not path.is_file():  # a pipe would be waited for without end
        return None
    try:
        return path.open("rb")
    except FileNotFoundError:
        return None


def writers(folder: Path) -> list[str]:
    """Who has a log in a folder; "" is the one process that serves it.

    Raises:
        OSError: the folder cannot be read.
    """
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries]
    matches = [_NAME.fullmatch(name) or _HEAD.fullmatch(name) for name in names]
    return sorted({match["writer"] or "" for match in matches if match})


def _named(folder: Path) -> Iterator[tuple[str, re.Match[str]]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if match := _NAME.fullmatch(entry.name):
                yield entry.name, match
