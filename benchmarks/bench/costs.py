"""Processor time and peak memory of each method, each in a process of its own."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import torch

from benchmarks.cost import STILL, measure
from benchmarks.telling import method_name
from ttc_core.methods import METHODS
from ttc_core.presets import Variant

SIZE = 100
"""Of the batches."""


def costs_table(images: int) -> str:
    """Markdown: a line a method; memory of the GPU where there is one."""
    heads = [f"batches of {SIZE}", "processor s / 1,000", "peak MiB"]
    heads += ["peak MiB of the GPU"] if torch.cuda.is_available() else []
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        for variant in [*map(Variant, METHODS), STILL]:
            one = pool.submit(measure, "bundled", variant, SIZE, images).result()
            cells = [method_name(variant), f"{1000 * one.processor / images:.2f}"]
            cells += [f"{each:.0f}" for each in (one.peak, one.device_peak)]
            lines.append(f"| {' | '.join(cells[: len(heads)])} |")
    return "\n".join(lines)
