"""Files that are there whole or not at all."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the name `path` when the block ends well, in place of what is there.

    If it does not (a full disk, Ctrl-C), what was there stays and nothing else is left. Folders
    that are missing are made.

    Raises:
        OSError: it cannot be written; also where `path` is a folder, a pipe or a device.
    """
    path = Path(os.path.realpath(path))  # a link stays one
    check_regular(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.parent / f".{secrets.token_hex(8)}.part"
    try:
        with unfinished.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def check_regular(path: Path) -> None:
    """Raise OSError if there is something other than an ordinary file at `path`.

    A pipe would be waited for without end; a folder or a device holds no file.
    """
    if path.exists() and not path.is_file():
        raise OSError(None, "it is no ordinary file", str(path))
