"""Print the seconds of a bare loop of Algorithm 1: python -m benchmarks.bare_loop SPEC IMAGES."""

import copy
import sys
import time

import torch

from benchmarks.algorithm_1 import Algorithm1, run
from ttc_core.datasets import Geometry, open_data
from ttc_core.evaluate import as_batch
from ttc_core.load import load

BATCH = 100
CORRUPTION = "gaussian_noise"


def main(spec: str, images: int) -> float:
    """Answer the first `images` bundled images with the model, once, after a batch to warm up."""
    model = load(spec)
    mean, std = (torch.tensor(values)[:, None, None] for values in (model.mean, model.std))
    stream = open_data("bundled", Geometry(32)).open(CORRUPTION, 5, limit=images)
    batches = [as_batch(images).contiguous() for images, _ in stream.batches(BATCH)]
    trial = copy.deepcopy(model.module)  # the loop changes its network
    run(Algorithm1(trial, model.split, mean, std, q=200 // BATCH), iter(batches[:1]))
    algorithm = Algorithm1(model.module, model.split, mean, std, q=200 // BATCH)
    started = time.perf_counter()
    run(algorithm, iter(batches))
    return time.perf_counter() - started


if __name__ == "__main__":
    print(main(sys.argv[1], int(sys.argv[2])))
