"""A video file or an RTSP camera, through OpenCV: pip install 'ttc-service[examples]'.

    python video.py clip.mp4 0.5                          a frame each half second, in order
    python video.py rtsp://user:secret@10.0.0.7/stream 1  the newest frame each second

The camera is read all the time, since OpenCV keeps frames that nobody reads and would lag behind
them. The stream is named TTC_STREAM, the service is at TTC_URL, its --token is TTC_TOKEN.
"""

import contextlib
import os
import queue
import signal
import sys
import threading
import time
from itertools import count

import cv2

from service.client import Client, ServiceError

Frame = tuple[str, bytes]  # its name, a JPEG file


def put(frames: "queue.Queue[Frame]", frame: Frame, live: bool, stop: threading.Event) -> None:
    """Hand a frame over: of a camera in place of the one that waits, of a file after it."""
    if live:
        with contextlib.suppress(queue.Empty):
            frames.get_nowait()
    while not stop.is_set():
        try:
            frames.put(frame, timeout=0.2)
        except queue.Full:
            continue
        return


def read(
    capture: cv2.VideoCapture,
    seconds: float,
    live: bool,
    frames: "queue.Queue[Frame]",
    stop: threading.Event,
) -> None:
    """Read to the end, and hand over a frame each so many seconds."""
    a_second = capture.get(cv2.CAP_PROP_FPS) or 25.0
    due = 0.0
    for number in count():
        if stop.is_set() or not capture.grab():
            return
        now = time.time() if live else number / a_second
        if now < due:
            continue
        there, pixels = capture.retrieve()
        if not there:  # a damaged one: the next that is whole goes
            continue
        due = now + seconds
        _, file = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])
        put(frames, (f"{now:.3f}", file.tobytes()), live, stop)


def main(source: str, seconds: float) -> None:
    """Send frames until the video or a signal ends it."""
    live = "://" in source
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    capture = cv2.VideoCapture(source)
    if not capture.isOpened():
        sys.exit(f"OpenCV cannot read {source.rpartition('@')[2]}.")
    frames: queue.Queue[Frame] = queue.Queue(maxsize=1)
    reader = threading.Thread(target=read, args=(capture, seconds, live, frames, stop))
    reader.start()
    answered = 0
    client = Client(
        os.environ.get("TTC_URL", "http://127.0.0.1:8000"),
        token=os.environ.get("TTC_TOKEN"),
        # A file waits for the service; a camera's frame that was refused has grown old.
        retry_budget=0 if live else 20,
    )
    try:
        while not stop.is_set() and (reader.is_alive() or not frames.empty()):
            try:
                name, file = frames.get(timeout=0.2)
            except queue.Empty:
                continue
            try:
                answer = client.predict(file, stream=os.environ.get("TTC_STREAM"), ids=[name])
            except ServiceError as error:
                if not live or error.status in (401, 403):
                    sys.exit(str(error))
                print(error, file=sys.stderr, flush=True)
                stop.wait(error.retry_after or 1.0)
                continue
            (found,) = answer.predictions
            answered += 1
            print(f"{name} {found.name} {found.confidence:.0%}", flush=True)
        if live and not stop.is_set():
            sys.exit("The camera sends no more.")
    finally:
        stop.set()
        reader.join()
        capture.release()
        client.close()
    print(f"{answered} frames answered.")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: video.py FILE_OR_URL [SECONDS]")
    try:
        pause = float((sys.argv[2:] or ["1"])[0])
    except ValueError:
        sys.exit(f"SECONDS is a number; got {sys.argv[2]!r}.")
    main(sys.argv[1], pause)
