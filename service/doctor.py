"""Look over an installation before it serves."""

import time
from dataclasses import dataclass

import torch

from service.metrics import versions
from ttc_core.datasets import open_data
from ttc_core.errors import LoadError, ModelError
from ttc_core.evaluate import run_stream
from ttc_core.load import load, pick_device
from ttc_core.methods import create
from ttc_core.model import SourceModel

TRIAL_IMAGES = 200
BATCH, PASSES = 100, 4
# A smaller share of the time is within what it varies by.
NO_MATTER = 0.05


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    ok: bool
    sentence: str


def examine(device: str) -> list[Finding]:
    """Look at versions, torchvision's match, the device, and the bundled model at work."""
    named = ", ".join(f"{name} {version}" for name, version in versions().items())
    return [Finding(True, named), _torchvision(), *_bundled_model(device)]


def _torchvision() -> Finding:
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:
        return Finding(
            False,
            f"torchvision does not match torch {torch.__version__} ({error}); install a matching "
            "pair with pip install --upgrade torch torchvision. Only torchvision models need it.",
        )
    return Finding(True, f"torchvision {torchvision.__version__} matches torch")


def _bundled_model(device: str) -> list[Finding]:
    try:
        chosen = pick_device(device)
        model = load("bundled", device=chosen)
    except LoadError as error:
        return [Finding(False, str(error))]
    where = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else "CPU"
    stream = open_data("bundled", model.geometry).open("clean", 5, limit=TRIAL_IMAGES)
    tally = run_stream(create("source", model), stream, BATCH)
    stated = model.accuracy or 0.0
    return [
        Finding(True, f"device {chosen} ({where}), {torch.get_num_threads()} CPU threads"),
        Finding(
            abs(tally.accuracy - stated) < 0.06,
            f"bundled model: {tally.accuracy:.1%} of {TRIAL_IMAGES} clean images right, "
            f"{stated:.1%} stated for all",
        ),
        _bfloat16(model, chosen),
    ]


def _bfloat16(model: SourceModel, device: torch.device) -> Finding:
    """Whether --precision bfloat16 is of use here: without units for it, it takes longer."""
    usual = _seconds(model)
    try:
        reduced = _seconds(load("bundled", device=device, precision="bfloat16"))
    except (LoadError, ModelError) as error:
        return Finding(True, f"--precision bfloat16 is of no use here: {error}")
    share = round(reduced / usual, 2)
    said = "faster" if share <= 1 - NO_MATTER else "slower" if share > 1 else "hardly faster"
    return Finding(
        True,
        f"--precision bfloat16 is {said} than float32 here: {share:.2f} of its time (answers of "
        f"the bundled model to {BATCH} images; where it learns as well less is gained)",
    )


def _seconds(model: SourceModel) -> float:
    """The shortest of some passes: whatever else runs here makes none shorter."""
    images = torch.zeros(BATCH, 3, model.trial_side, model.trial_side, device=model.device)
    times = []
    with torch.no_grad():
        for _ in range(PASSES):
            start = time.perf_counter()
            model.run(model.normalize(images)).logits.cpu()
            times.append(time.perf_counter() - start)
    return min(times)
