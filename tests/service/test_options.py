"""What the command line does before a model runs."""

import subprocess
import sys

PROGRAM = """
import resource, torch
from concurrent.futures import ThreadPoolExecutor
from service.cli.options import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(100 << 20, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
{call}
with ThreadPoolExecutor(1) as device:
    device.submit(faults).result()
    print(device.submit(faults).result())
"""


def faults(call):
    """Pages that the system clears for 100 MiB that were freed before, on another thread."""
    code = PROGRAM.format(call=call)
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return int(result.stdout)


def test_freed_memory_is_used_again_without_asking_the_system():
    """A forward pass of a large batch would else have every page of it mapped and cleared anew."""
    assert faults("keep_freed_memory()") < 100
    assert faults("") > 100
