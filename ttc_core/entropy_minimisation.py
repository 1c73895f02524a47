"""The paper's Figure 1: one sample's class probabilities while their entropy is minimised.

No network and no data: gradient descent on the logits of a single answer.
"""

from typing import Any

import torch
from numpy.typing import NDArray

from ttc_core.objective import entropy

SETTINGS: dict[str, Any] = {"classes": [2, 10, 100, 1000], "steps": 300, "lr": 1.0, "seed": 0}
"""Several K, the number of steps, their size, and the seed of the first logits."""


def minimise_entropy(classes: int, *, steps: int, lr: float, seed: int) -> NDArray[Any]:
    """Return the class probabilities (steps + 1, classes) before and after every step.

    Args:
        classes: K, at least 2.
        lr: z ← z − lr · ∂H/∂z, with p = softmax(z).
        seed: of the first logits, which are standard normal.
    """
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, classes, generator=random, dtype=torch.float64)
    path = [logits.softmax(dim=1)]
    for _ in range(steps):
        logits = logits.detach().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(entropy(logits).sum(), logits)
        logits = logits.detach() - lr * slope
        path.append(logits.softmax(dim=1))
    return torch.cat(path).to(torch.float32).numpy()


def simulate() -> dict[str, NDArray[Any]]:
    """Return `probabilities_<K>` for each K of SETTINGS."""
    s = SETTINGS
    return {
        f"probabilities_{classes}": minimise_entropy(
            classes, steps=s["steps"], lr=s["lr"], seed=s["seed"]
        )
        for classes in s["classes"]
    }
