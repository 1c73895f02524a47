"""A folder that is watched: each picture that appears in it is sent once, the oldest first.

    python folder.py /srv/uploads

It is looked at each second, which works on network drives, too. A file is sent once it has stayed
as it is from one look to the next: it is then no longer being written. What was sent is kept in
`.sent` in the folder, so that a restart goes on behind it. A signal lets the request in hand be
answered and noted; what is killed, or loses power, in between sends that one picture again, and the
service learns from it twice. The stream is named TTC_STREAM, the service is at TTC_URL, its --token
is TTC_TOKEN.
"""

import contextlib
import json
import os
import signal
import sys
import threading
from pathlib import Path

from service.client import Client, ServiceError

SECONDS = 1.0
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"}
Look = dict[str, tuple[int, int]]  # name -> when it was changed, in nanoseconds; bytes


def look(folder: Path) -> Look:
    """The pictures in the folder as they are now, the oldest first."""
    found = {}
    for entry in os.scandir(folder):
        if Path(entry.name).suffix.lower() in SUFFIXES and entry.is_file():
            with contextlib.suppress(FileNotFoundError):  # it was there a moment ago
                known = entry.stat()
                found[entry.name] = (known.st_mtime_ns, known.st_size)
    return dict(sorted(found.items(), key=lambda pair: (pair[1], pair[0])))


class Sent:
    """What was sent, in a file: a line each, its name and when it was changed."""

    def __init__(self, file: Path) -> None:
        lines = file.read_text().splitlines() if file.exists() else []
        self._known = set(lines)
        self._file = file.open("a")

    def __contains__(self, picture: tuple[str, int]) -> bool:
        return json.dumps(picture) in self._known

    def add(self, picture: tuple[str, int]) -> None:
        """Keep one in mind, at once."""
        line = json.dumps(picture)
        self._known.add(line)
        print(line, file=self._file, flush=True)


def main(folder: Path) -> None:
    """Send pictures until a signal ends it."""
    if not folder.is_dir():
        sys.exit(f"There is no folder {folder}.")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    sent = Sent(folder / ".sent")
    before: Look = {}
    url = os.environ.get("TTC_URL", "http://127.0.0.1:8000")
    with Client(url, token=os.environ.get("TTC_TOKEN"), retry_budget=0) as client:
        while not stop.is_set():
            now, pause = look(folder), SECONDS
            for name, (changed, size) in now.items():
                if stop.is_set():
                    break
                if (name, changed) in sent or before.get(name) != (changed, size):
                    continue
                shown = os.fsencode(name).decode(errors="backslashreplace")  # it may be no UTF-8
                try:
                    answer = client.predict(folder / name, stream=os.environ.get("TTC_STREAM"))
                except ServiceError as error:
                    said, out = str(error), sys.stderr
                    if error.may_repeat or error.status in (401, 403, 404):
                        print(f"{shown}: {said}", file=out, flush=True)
                        pause = error.retry_after or SECONDS
                        break  # nothing of it was taken: it is the first of the next look
                except ValueError as error:  # it is gone, or may not be read
                    print(f"{shown}: {error}", file=sys.stderr, flush=True)
                    continue
                else:
                    (found,) = answer.predictions
                    said, out = f"{found.name} {found.confidence:.0%}", sys.stdout
                # Before it is told, whoever listens. Also what is no picture, and whose answer was
                # lost, or came of a proxy: it may have been learned.
                sent.add((name, changed))
                print(f"{shown}: {said}", file=out, flush=True)
            before = now
            stop.wait(pause)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: folder.py FOLDER")
    main(Path(sys.argv[1]))
