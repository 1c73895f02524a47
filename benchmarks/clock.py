"""Seconds of work, a GPU's included: the device is waited for before each look at a clock."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass
class Seconds:
    """What a block took; 0 until it has ended.

    Attributes:
        wall: seconds.
        processor: seconds of processor time, of this process.
    """

    wall: float = 0.0
    processor: float = 0.0


@contextlib.contextmanager
def timed() -> Iterator[Seconds]:
    """Measure a block, up to the end of what it asked of the device."""
    found = Seconds()
    _wait_for_device()
    wall, processor = time.perf_counter(), time.process_time()
    yield found
    _wait_for_device()
    found.wall, found.processor = time.perf_counter() - wall, time.process_time() - processor


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
