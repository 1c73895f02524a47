"""A camera that pushes its newest frame: what has grown old while it waited is dropped.

    ffmpeg -loglevel error -f v4l2 -i /dev/video0 -c:v mjpeg -f mjpeg - | python camera.py gate-4
    rpicam-vid -t 0 --codec mjpeg -o - | python camera.py gate-4

Frames come as JPEGs on standard input. However slow the service or the network is, an answer is
never later than one request and one frame. The service is at TTC_URL, its --token is TTC_TOKEN.
"""

import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from io import RawIOBase

from service.client import Client, ServiceError

Frame = tuple[float, bytes]  # seconds since 1970 at which it came, a JPEG file
MOST_BYTES = 32 << 20  # of a frame: the service takes none that is larger


def jpegs(stream: RawIOBase) -> Iterator[bytes]:
    """Part a stream of JPEGs, none of which has a thumbnail in it, at their ends.

    Args:
        stream: whose `read` returns what is there, as an unbuffered file's does.
    """
    rest = b""
    while chunk := stream.read(1 << 16):
        rest += chunk
        while end := rest.find(b"\xff\xd9") + 1:
            yield rest[: end + 1]
            rest = rest[end + 1 :]
        if len(rest) > MOST_BYTES:
            rest = b""


class Newest:
    """A queue of one: what is put into it takes the place of what waits there."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[Frame] = queue.Queue(maxsize=1)
        self.dropped = 0

    def put(self, frame: Frame) -> None:
        """Have this frame be the next; one thread may put."""
        try:
            self._waiting.get_nowait()
            self.dropped += 1
        except queue.Empty:
            pass
        self._waiting.put(frame)

    def take(self, patience: float) -> Frame | None:
        """The newest frame; None: none came within `patience` seconds."""
        try:
            return self._waiting.get(timeout=patience)
        except queue.Empty:
            return None


def read(newest: Newest) -> None:
    """Take frames as they come, until there are no more."""
    # Unbuffered, since Python cannot end while a thread waits for a frame within sys.stdin's lock.
    with open(0, "rb", buffering=0, closefd=False) as stream:
        for file in jpegs(stream):
            newest.put((time.time(), file))


def main(stream: str, url: str) -> None:
    """Send frames until standard input or a signal ends it."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    newest, answered = Newest(), 0
    reader = threading.Thread(target=read, args=(newest,), daemon=True)
    reader.start()
    # No budget: to send again what was refused would be to send what has grown old.
    with Client(url, token=os.environ.get("TTC_TOKEN"), retry_budget=0) as client:
        while not stop.is_set():
            frame = newest.take(patience=0.2)
            if frame is None:
                if reader.is_alive():
                    continue
                break
            taken, file = frame
            try:
                answer = client.predict(file, stream=stream, ids=[f"{taken:.3f}"])
            except ServiceError as error:
                if error.status in (401, 403):
                    sys.exit(str(error))
                print(error, file=sys.stderr, flush=True)
                stop.wait(error.retry_after or 1.0)
                continue
            (found,) = answer.predictions
            answered += 1
            late = time.time() - taken
            print(f"{found.id} {found.name} {found.confidence:.0%}, {late:.2f} s late", flush=True)
    print(f"{answered} frames answered, {newest.dropped} dropped for newer ones.")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: camera.py STREAM")
    main(sys.argv[1], os.environ.get("TTC_URL", "http://127.0.0.1:8000"))
