"""Print the seconds of a bare loop: python -m benchmarks.bare_loop tent|ttc SPEC IMAGES."""

import copy
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.algorithm_1 import Algorithm1
from benchmarks.tent import Tent
from ttc_core.datasets import Geometry, open_data
from ttc_core.evaluate import as_batch
from ttc_core.load import load
from ttc_core.model import SourceModel

BATCH = 100
CORRUPTION = "gaussian_noise"


def bare(method: str, model: SourceModel) -> Callable[[Tensor], Tensor]:
    """The method on a copy of the model's network."""
    network = copy.deepcopy(model.module)
    mean, std = (torch.tensor(values)[:, None, None] for values in (model.mean, model.std))
    if method == "tent":
        return Tent(network, mean, std)
    return Algorithm1(network, model.split, mean, std, q=200 // BATCH)


def main(method: str, spec: str, images: int) -> float:
    """Answer the first `images` bundled images with the model, once, after a batch to warm up."""
    model = load(spec)
    stream = open_data("bundled", Geometry(32)).open(CORRUPTION, 5, limit=images)
    batches = [as_batch(images).contiguous() for images, _ in stream.batches(BATCH)]
    bare(method, model)(batches[0])
    answer = bare(method, model)
    started = time.perf_counter()
    for batch in batches:
        answer(batch)
    return time.perf_counter() - started


if __name__ == "__main__":
    print(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
