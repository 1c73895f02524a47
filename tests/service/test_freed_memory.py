"""What forward passes cost the system: pages that it maps and clears."""

import subprocess
import sys

import pytest

# Twelve passes of 25 MiB activations on one thread after a first, as `ttc serve` runs them.
PROGRAM = """
import resource, torch
from concurrent.futures import ThreadPoolExecutor
from torch import nn
from service.cli.options import keep_freed_memory

network = nn.Sequential(*(nn.Conv2d(16, 16, 3, padding=1) for _ in range(4)))
images = torch.rand(100, 16, 64, 64)

@torch.no_grad()
def forward(passes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(passes):
        network(images)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
{call}
with ThreadPoolExecutor(1) as device:
    device.submit(forward, 2).result()
    print(device.submit(forward, 12).result())
"""
PAGES_OF_THE_ACTIVATIONS = 12 * 4 * (100 * 16 * 64 * 64 * 4) // 4096


def faults(call):
    """Pages that twelve forward passes have the system clear, after others have freed theirs."""
    code = PROGRAM.format(call=call)
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return int(result.stdout)


@pytest.mark.slow
def test_forward_passes_together_use_freed_memory_again():
    """Else each would have every page of its activations mapped and cleared anew."""
    kept = faults("keep_freed_memory()")
    assert kept < 0.1 * PAGES_OF_THE_ACTIVATIONS
    # How many there are without it differs between processors and their libraries.
    assert faults("") > 3 * kept
