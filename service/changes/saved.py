"""Saved streams as they lie in a --state-dir, those of other weights among them."""

import contextlib
import os
from collections.abc import Iterator
from hashlib import file_digest
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from service.schemas import ChangesMark
from service.state_folder import APART, SUFFIX, stream_of
from ttc_core.state_description import describe
from ttc_core.state_file import StateError


class SavedFile(NamedTuple):
    """A stream's file.

    Attributes:
        name: from the --state-dir on.
        stream: whose it is by what stands in it; None: that is not said.
        mark: the end of the log when it was written, by what stands in it.
    """

    name: str
    sha256: str
    stream: str | None
    mark: ChangesMark | None


def stream_files(folder: Path) -> Iterator[Path]:
    """The files of streams, in the folder itself and in those of other weights.

    Raises:
        OSError: a folder cannot be read.
    """
    for inside in (folder, *sorted(folder.glob(f"{APART}*/"))):
        for path in sorted(inside.iterdir()):
            if path.suffix == SUFFIX and stream_of(path.name) is not None and path.is_file():
                yield path


def saved_files(folder: Path) -> Iterator[SavedFile]:
    """Read each of them; one that goes meanwhile is left out.

    Raises:
        OSError: something cannot be read.
    """
    for path in stream_files(folder):
        with contextlib.suppress(FileNotFoundError):
            yield _saved_file(folder, path)


def _saved_file(folder: Path, path: Path) -> SavedFile:
    """Read a stream's file; all that is told is of one and the same."""
    while True:
        with path.open("rb") as file:
            sha256 = file_digest(file, "sha256").hexdigest()
            try:
                about = describe(path).of_stream
            except StateError:
                about = {}
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break  # nobody has replaced it in between
    stream = about.get("stream")
    name = str(path.relative_to(folder))
    whose = stream if isinstance(stream, str) else None
    return SavedFile(name, sha256, whose, mark_of(about.get("changes")))


def mark_of(given: object) -> ChangesMark | None:
    """A mark as JSON has it; None: it is none."""
    if given is None:
        return None
    try:
        return ChangesMark.model_validate(given)
    except ValidationError:
        return None
