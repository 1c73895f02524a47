"""Image files decoded side by side, ahead of the model: in order, bounded, and without remains."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ttc_core.datasets import WORDNET_IDS_FILE, DataError, Geometry, open_data
from ttc_core.datasets.stream import BATCHES_AHEAD, DECODING_THREADS, IMAGES_A_TASK, Stream

N = 200


def stream(read) -> Stream:
    positions = np.arange(N)
    return Stream("clean", None, positions % 7, positions, read, lambda _: b"", decodes=True)


def images_at(places):
    """Images whose pixels tell their place."""
    return np.broadcast_to(places.astype(np.uint8)[:, None, None, None], (len(places), 2, 2, 3))


def decoding_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("decode")]


@pytest.mark.parametrize("size", [1, 7, 50, 1000])
def test_the_images_come_in_order(size):
    """Whichever thread is done first; every image once, with its label."""

    def read(places):
        time.sleep(0.0005 * (places[0] % 3))
        return images_at(places)

    batches = list(stream(read).batches(size))
    places = np.concatenate([images[:, 0, 0, 0] for images, _ in batches])
    labels = np.concatenate([labels for _, labels in batches])
    assert places.tolist() == list(range(N))
    assert labels.tolist() == (np.arange(N) % 7).tolist()
    assert not decoding_threads()


def test_files_are_decoded_side_by_side():
    """Two reads are under way at once, where there are two cores."""
    if DECODING_THREADS < 2:
        pytest.skip("one core")
    both = threading.Barrier(2, timeout=20)
    first = threading.Event()

    def read(places):
        if places[0] < 2 * IMAGES_A_TASK and not first.is_set():
            both.wait()
            first.set()
        return images_at(places)

    next(stream(read).batches(4 * IMAGES_A_TASK))
    assert first.is_set()


@pytest.mark.parametrize("size", [1, 10, 50])
def test_no_more_than_a_few_batches_are_ahead(size):
    """However slow the model is: memory does not grow with the stream."""
    read_so_far, lock = [], threading.Lock()

    def read(places):
        with lock:
            read_so_far.extend(places.tolist())
        return images_at(places)

    batches = stream(read).batches(size)
    ahead = max(BATCHES_AHEAD, -(-DECODING_THREADS // size))
    for number in range(1, 4):
        next(batches)
        time.sleep(0.05)
        assert number * size <= len(read_so_far) <= (number + ahead) * size
    batches.close()


def test_whoever_stops_early_leaves_no_thread():
    """Closed, or dropped after an error of the model's."""
    batches = stream(images_at).batches(10)
    next(batches)
    assert decoding_threads()
    batches.close()
    assert not decoding_threads()


def test_a_damaged_file_is_an_error_when_its_batch_is_due(tmp_path: Path):
    """The batches before it are answered; the sentence names the file."""
    folder = tmp_path / "0"
    folder.mkdir()
    for number in range(6):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
    (folder / "4.png").write_bytes(b"")
    batches = open_data(f"folder:{tmp_path}", Geometry(8)).open("clean", 5).batches(2)
    assert len(next(batches)[0]) == len(next(batches)[0]) == 2
    with pytest.raises(DataError, match=r"0/4\.png cannot be read as an image"):
        next(batches)
    assert not decoding_threads()


def test_a_truncated_jpeg_is_an_error(tmp_path: Path):
    """Half a photograph is not answered as if it were whole."""
    wordnet_id = WORDNET_IDS_FILE.read_text().split()[0]
    folder = tmp_path / "fog" / "5" / wordnet_id
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(folder / "a.JPEG")
    whole = (folder / "a.JPEG").read_bytes()
    (folder / "a.JPEG").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a\.JPEG cannot be read as an image"):
        next(open_data(f"imagenetc:{tmp_path}", Geometry(32)).open("fog", 5).batches(1))
