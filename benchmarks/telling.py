"""What benchmarks say: what they ran on, of which methods, how far measurements lie apart."""

import os
import platform
import statistics
from collections.abc import Iterable
from pathlib import Path

import torch

from ttc_core.methods import DEFAULT_METHOD
from ttc_core.presets import Variant


def device_name() -> str:
    """The GPU's name where torch sees one, else the processor's and how many cores it has."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_processor()}, {cores} cores"


def method_name(variant: Variant) -> str:
    """As tables name it."""
    if variant.method == DEFAULT_METHOD:
        still = variant.settings.get("learn") == "never"
        return "the default, not learning" if still else "the default"
    return variant.method.upper()


def spread(values: Iterable[float], digits: int = 3) -> str:
    """A median, with the least and the most where there are several; nothing of nothing."""
    found = sorted(values)
    if not found:
        return ""
    told = [f"{each:.{digits}g}" for each in (statistics.median(found), found[0], found[-1])]
    return told[0] if len(found) == 1 else f"{told[0]} ({told[1]} to {told[2]})"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
