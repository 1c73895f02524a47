"""The examples in Python that send pictures: a camera, a video, a folder."""

import base64
import io
import json
import os
import queue
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from examples import camera, folder, video
from examples.camera import jpegs
from service.client import Client
from tests.examples.conftest import PATIENCE, finish, terminate
from tests.fixtures.requests import at_rest


def frame(number, side=32):
    """A JPEG that is a little brighter with each number."""
    file = io.BytesIO()
    Image.new("L", (side, side), number).save(file, "JPEG", quality=95)
    return file.getvalue()


FRAMES = [frame(number) for number in range(60)]


def sent(scripted):
    """The files that came, in order."""
    bodies = [json.loads(body) for *_, body in scripted.asked]
    return [base64.b64decode(body["images"][0]["b64"]) for body in bodies]


def brightness(file):
    return float(np.asarray(Image.open(io.BytesIO(file)).convert("L")).mean())


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# A camera


@given(st.lists(st.sampled_from(FRAMES), max_size=5), st.lists(st.integers(1, 400)))
def test_a_stream_of_jpegs_is_parted_at_their_ends(files, sizes):
    """Whatever pieces it comes in."""
    rest = io.BytesIO(b"".join(files))

    class Pieces:
        def read(self, most):
            return rest.read(sizes.pop(0) if sizes else most)

    assert list(jpegs(Pieces())) == files


def test_a_stream_without_jpegs_is_not_kept(monkeypatch):
    monkeypatch.setattr(camera, "MOST_BYTES", 1 << 18)
    (found,) = jpegs(io.BytesIO(bytes(1 << 20) + FRAMES[1]))
    assert found.endswith(FRAMES[1])
    assert len(found) < 1 << 19


def test_a_camera_sends_the_newest_frame_and_drops_the_others(scripted, start):
    """A service ten times as slow as the camera: it never lags more than a request behind."""
    scripted.seconds = 0.2
    process = start("camera.py", "gate-4", url=scripted.url, stdin=-1, text=False)
    come = []
    for each in FRAMES:
        process.stdin.write(each)
        process.stdin.flush()
        come.append(time.monotonic())
        time.sleep(0.02)
    status, out, err = finish(process)
    assert (status, err) == (0, b"")
    numbers = [FRAMES.index(file) for file in sent(scripted)]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == len(FRAMES) - 1, "the last one has nothing newer"
    assert len(numbers) < len(FRAMES) / 2
    answered, dropped = map(int, re.search(rb"(\d+) frames answered, (\d+) dropped", out).groups())
    assert answered == len(numbers)
    assert answered + dropped == len(FRAMES)
    # What is sent came while the request before it was answered, not earlier.
    for before, number in zip(scripted.times, numbers[1:], strict=False):
        assert come[number] > before - 0.1


def test_a_camera_that_is_refused_comes_back_with_a_newer_frame(scripted, start):
    scripted.before = [(429, {"Retry-After": "1"})]
    process = start("camera.py", "gate-4", url=scripted.url, stdin=-1, text=False)
    process.stdin.write(FRAMES[0])
    process.stdin.flush()
    wait_until(lambda: scripted.asked)
    process.stdin.write(FRAMES[1] + FRAMES[2] + FRAMES[3])
    process.stdin.flush()
    wait_until(lambda: len(scripted.asked) == 2)
    status, _, err = terminate(process)
    assert (status, err.strip()) == (0, b"Not now.")
    assert sent(scripted) == [FRAMES[0], FRAMES[3]]
    assert scripted.times[1] - scripted.times[0] >= 1


def test_a_camera_ends_on_a_signal_while_it_waits_for_a_frame(server, start):
    """And while its pipe is open; what was answered is told."""
    process = start("camera.py", "pipe", url=server.url, stdin=-1, text=False)
    process.stdin.write(FRAMES[5])
    process.stdin.flush()
    line = process.stdout.readline()
    assert re.match(rb"\d+\.\d{3} .+ \d+%, \d+\.\d\d s late\n", line)
    status, out, err = terminate(process)
    assert (status, err) == (0, b"")
    assert out == b"1 frames answered, 0 dropped for newer ones.\n"
    with Client(server.url) as client:
        assert at_rest(client).streams["pipe"].images == 1


# A video


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Three seconds, ten frames each, brighter with each frame."""
    path = tmp_path_factory.mktemp("clip") / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for number in range(30):
        writer.write(np.full((48, 64, 3), 8 * number, np.uint8))
    writer.release()
    return path


def test_a_video_is_sent_frame_by_frame_in_its_own_time(scripted, start, clip):
    """However slow the service is: a file can wait."""
    scripted.seconds = 0.1
    status, out, err = finish(start("video.py", clip, "0.5", url=scripted.url))
    assert (status, err) == (0, "")
    assert [round(brightness(file) / 8) for file in sent(scripted)] == [0, 5, 10, 15, 20, 25]
    names = [json.loads(body)["images"][0]["id"] for *_, body in scripted.asked]
    assert names == [f"{0.5 * number:.3f}" for number in range(6)]
    assert out.endswith("6 frames answered.\n")


def test_a_video_is_answered_by_a_real_service(server, start, clip):
    status, out, err = finish(start("video.py", clip, "1", url=server.url))
    assert (status, err) == (0, "")
    assert len(re.findall(r"^\d\.000 .+ \d+%$", out, re.MULTILINE)) == 3


def test_a_video_waits_as_long_as_it_is_told(scripted, start, clip):
    """No frame of a file is lost."""
    scripted.before = [(503, {"Retry-After": "1"})]
    status, out, _ = finish(start("video.py", clip, "1", url=scripted.url))
    assert status == 0
    assert scripted.times[1] - scripted.times[0] >= 1
    assert out.endswith("3 frames answered.\n")


class Damaged:
    """Frames 1 to 3 of six cannot be decoded."""

    def __init__(self):
        self.number = -1

    def get(self, _):
        return 1.0

    def grab(self):
        self.number += 1
        return self.number < 6

    def retrieve(self):
        there = self.number not in (1, 2, 3)
        return there, np.full((8, 8, 3), self.number, np.uint8) if there else None


def test_a_damaged_frame_of_a_video_is_left_out():
    """The next whole one goes in its place."""
    frames = queue.Queue()
    video.read(Damaged(), 1.0, False, frames, threading.Event())
    assert [name for name, _ in frames.queue] == ["0.000", "4.000", "5.000"]


def test_a_pause_that_is_no_number_is_told(start, scripted, clip):
    status, _, err = finish(start("video.py", clip, "soon", url=scripted.url))
    assert (status, err) == (1, "SECONDS is a number; got 'soon'.\n")


def test_a_video_ends_on_a_signal(scripted, start, clip):
    scripted.seconds = 0.3
    process = start("video.py", clip, "0.1", url=scripted.url)
    wait_until(lambda: len(scripted.asked) == 2)
    status, out, err = terminate(process)
    assert (status, err) == (0, "")
    answered = int(re.search(r"(\d+) frames answered", out)[1])
    assert answered == len(scripted.asked) < 10


def test_a_file_that_is_no_video_is_told(scripted, start, tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"no video")
    status, out, err = finish(start("video.py", tmp_path / "clip.mp4", url=scripted.url))
    assert (status, out) == (1, "")
    assert f"OpenCV cannot read {tmp_path / 'clip.mp4'}." in err


class NetworkCamera(BaseHTTPRequestHandler):
    """An MJPEG stream over HTTP, fifty frames a second, brighter with each."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        for number in range(120):
            file = frame(2 * number, side=64)
            head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(file)
            try:
                self.wfile.write(head + file + b"\r\n")
            except OSError:
                return
            time.sleep(0.02)

    def log_message(self, *_):
        """Keep the test's output clean."""


def test_of_a_network_camera_the_newest_frame_is_sent(scripted, start):
    """Through OpenCV, from a real stream: what is sent is no older than a request."""
    camera = ThreadingHTTPServer(("127.0.0.1", 0), NetworkCamera)
    camera.daemon_threads = True
    thread = threading.Thread(target=camera.serve_forever, args=(0.01,))
    thread.start()
    try:
        scripted.seconds = 0.3
        source = f"http://127.0.0.1:{camera.server_port}/stream.mjpg"
        status, _, err = finish(start("video.py", source, "0", url=scripted.url))
    finally:
        camera.shutdown()
        camera.server_close()
        thread.join()
    assert status == 1
    assert err.endswith("The camera sends no more.\n")
    numbers = [brightness(file) / 2 for file in sent(scripted)]
    assert numbers == sorted(numbers)
    assert 3 <= len(numbers) < 20, "not each of the 120"
    assert numbers[-1] > 100


# A folder


def test_a_folder_sends_each_picture_once_the_oldest_first(server, start, photos, tmp_path):
    """Also over a restart; and what is no picture is left alone."""
    for place, photo in enumerate(photos[:3]):
        path = tmp_path / f"{9 - place}.jpg"
        path.write_bytes(photo.read_bytes())
        os.utime(path, (1000 + place, 1000 + place))
    (tmp_path / "notes.txt").write_text("no picture")
    first = start("folder.py", tmp_path, url=server.url)
    lines = [first.stdout.readline() for _ in range(3)]
    assert [line.partition(":")[0] for line in lines] == ["9.jpg", "8.jpg", "7.jpg"]
    assert terminate(first) == (0, "", "")
    (tmp_path / "new.png").write_bytes(photos[3].read_bytes())
    second = start("folder.py", tmp_path, url=server.url)
    assert second.stdout.readline().startswith("new.png: ")
    time.sleep(1.5)
    assert terminate(second) == (0, "", "")


def test_a_file_that_is_being_written_is_sent_once_it_is_whole(scripted, start, tmp_path):
    """A slow upload grows over several looks."""
    whole = frame(7, side=200)
    process = start("folder.py", tmp_path, url=scripted.url)
    with (tmp_path / "a.jpg").open("wb", buffering=0) as file:
        for at in range(0, len(whole), len(whole) // 6):
            file.write(whole[at : at + len(whole) // 6])
            time.sleep(0.5)
    assert process.stdout.readline() == "a.jpg: seven 90%\n"
    time.sleep(1.5)
    assert terminate(process) == (0, "", "")
    assert sent(scripted) == [whole]


def test_a_folder_comes_back_when_it_is_told_and_keeps_the_order(scripted, start, tmp_path):
    """What was refused is the first of the next look; what was lost, or is no picture, is over."""
    for number in range(4):
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(FRAMES[number])
        os.utime(path, (1000 + number, 1000 + number))
    scripted.before = [(429, {"Retry-After": "2"}), (404, {}), None, (400, {})]
    process = start("folder.py", tmp_path, url=scripted.url)
    wait_until(lambda: len(scripted.asked) == 6)
    time.sleep(1.5)
    status, out, err = terminate(process)
    assert status == 0
    assert sent(scripted) == [*FRAMES[:1] * 3, FRAMES[1], FRAMES[2], FRAMES[3]]
    assert scripted.times[1] - scripted.times[0] >= 2
    assert out == "2.jpg: seven 90%\n3.jpg: seven 90%\n"
    assert [line.partition(":")[0] for line in err.splitlines()] == [*["0.jpg"] * 3, "1.jpg"]


def test_a_folder_bears_whatever_names_pictures_have(scripted, start, tmp_path, monkeypatch):
    """One that is no UTF-8 is sent once, and told."""
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8:strict")
    (tmp_path / os.fsdecode(b"a\xff.jpg")).write_bytes(FRAMES[0])
    process = start("folder.py", tmp_path, url=scripted.url)
    assert process.stdout.readline() == "a\\xff.jpg: seven 90%\n"
    assert terminate(process) == (0, "", "")


def test_a_picture_is_noted_before_it_is_told(scripted, start, tmp_path):
    """Who listens may have gone: after a restart it would be learned from again."""
    process = start("folder.py", tmp_path, url=scripted.url)
    process.stdout.close()
    (tmp_path / "a.jpg").write_bytes(FRAMES[0])
    process.wait(PATIENCE)
    assert "a.jpg" in (tmp_path / ".sent").read_text()


def test_a_picture_that_goes_while_it_is_looked_at_is_none(tmp_path, monkeypatch):
    """As uploads that are renamed do."""

    class Gone:
        name = "a.jpg"

        def is_file(self):
            return True

        def stat(self):
            raise FileNotFoundError(self.name)

    monkeypatch.setattr("os.scandir", lambda _: [Gone()])
    assert folder.look(tmp_path) == {}


def test_a_folder_that_is_not_there_is_told(scripted, start, tmp_path):
    status, out, err = finish(start("folder.py", tmp_path / "none", url=scripted.url))
    assert (status, out, err) == (1, "", f"There is no folder {tmp_path / 'none'}.\n")
