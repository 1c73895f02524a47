"""T1: versions, torchvision's match, the device, and what bfloat16 is worth on it."""

import time
from collections.abc import Iterator

import torch

from service.doctor.asked import Asked
from service.doctor.checks import Finding
from service.metrics import versions
from ttc_core.datasets import open_data
from ttc_core.errors import LoadError, ModelError, told
from ttc_core.evaluate import run_stream
from ttc_core.load import pick_device
from ttc_core.methods import create
from ttc_core.model import SourceModel

TRIAL_IMAGES = 200
BATCH, PASSES = 100, 4
# Passes go on for no longer than so many seconds, and a batch that takes longer is not compared.
PATIENCE = 3.0
# A smaller share of the time is within what it varies by.
NO_MATTER = 0.05
OUT_OF_MEMORY = (MemoryError, torch.OutOfMemoryError)


def look_at_installation() -> Iterator[Finding]:
    """Versions, and whether torchvision fits torch."""
    found = versions()
    named = ", ".join(f"{name} {version}" for name, version in found.items())
    yield Finding("T101", "ok", named, found)
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:
        yield Finding(
            "T102",
            "problem",
            f"torchvision does not match torch {torch.__version__} ({error}); install a matching "
            "pair with pip install --upgrade torch torchvision. Only torchvision models need it.",
        )
    else:
        yield Finding("T102", "ok", f"torchvision {torchvision.__version__} matches torch")


def look_at_device(asked: Asked) -> Finding:
    """Whether it is there."""
    try:
        device = pick_device(asked.device)
    except LoadError as error:
        return Finding("T103", "problem", str(error))
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    threads = torch.get_num_threads()
    return Finding(
        "T103",
        "ok",
        f"device {device} ({where}), {threads} CPU threads",
        {"device": str(device), "threads": threads},
    )


def bundled_at_work(model: SourceModel) -> Finding:
    """T104: whether the bundled model is as right as it should be."""
    stream = open_data("bundled", model.geometry).open("clean", 5, limit=TRIAL_IMAGES)
    tally = run_stream(create("source", model), stream, BATCH)
    stated = model.accuracy or 0.0
    return Finding(
        "T104",
        "ok" if abs(tally.accuracy - stated) < 0.06 else "problem",
        f"bundled model: {tally.accuracy:.1%} of {TRIAL_IMAGES} clean images right, "
        f"{stated:.1%} stated for all",
        {"accuracy": tally.accuracy, "stated": stated},
    )


def bfloat16(asked: Asked, images: int = BATCH) -> Finding:
    """T105: whether --precision bfloat16 is of use here; without units for it, it takes longer."""
    try:
        others = [asked.load(precision=each) for each in ("float32", "bfloat16")]
    except (LoadError, ModelError) as error:
        return Finding("T105", "ok", f"--precision bfloat16 is of no use here: {error}")
    usual = seconds(others[0], images)
    try:
        reduced = seconds(others[1], images)
    except (ModelError, *OUT_OF_MEMORY) as error:
        return Finding("T105", "ok", f"--precision bfloat16 is of no use here: {told(error)}")
    share = round(reduced / usual, 2)
    said = "faster" if share <= 1 - NO_MATTER else "slower" if share > 1 else "hardly faster"
    whose = "the bundled model" if asked.model == "bundled" else asked.model
    return Finding(
        "T105",
        "ok",
        f"--precision bfloat16 is {said} than float32 here: {share:.2f} of its time (answers of "
        f"{whose} to {images} images; where it learns as well less is gained)",
        {"share": share, "images": images},
    )


def seconds(model: SourceModel, count: int) -> float:
    """The shortest of some passes: whatever else runs here makes none shorter.

    Raises:
        ModelError, MemoryError, torch.OutOfMemoryError: it fails on so many images.
    """
    images = torch.zeros(count, 3, model.trial_side, model.trial_side, device=model.device)
    times: list[float] = []
    with torch.no_grad():
        while len(times) < PASSES and sum(times) < PATIENCE:
            start = time.perf_counter()
            model.run(model.normalize(images)).logits.cpu()
            times.append(time.perf_counter() - start)
    return min(times)
