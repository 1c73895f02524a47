"""Images poisoned by somebody who knows the source network: pixels moved until it says one class.

White-box sign steps (Goodfellow et al., "Explaining and Harnessing Adversarial Examples", ICLR
2015) of a few grey levels each.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ttc_core.errors import ModelError, told
from ttc_core.model import SourceModel

STEPS, LEVELS, WANTED = 4, 2, 0  # 8 of 255 levels in all, towards class 0


def poisoned(model: SourceModel, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Move images (n, H, W, 3) towards class 0, as the source sees them, by at most 8 levels.

    Each image is attacked alone: together, rounding would make it another one in another batch.

    Raises:
        ModelError: the network has no gradient with regard to its input.
    """
    return np.concatenate([_attacked(model, image) for image in images])


def _attacked(model: SourceModel, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    levels = torch.from_numpy(image[None]).permute(0, 3, 1, 2).to(model.device).float()
    wanted = torch.tensor([WANTED], device=model.device)
    with torch.enable_grad():
        for _ in range(STEPS):
            levels = levels.detach().requires_grad_()
            logits = model.run(model.normalize(model.to_unit(levels / 255))).logits
            try:
                (slope,) = torch.autograd.grad(F.cross_entropy(logits, wanted), levels)
            except RuntimeError as error:
                raise ModelError(
                    f"The network cannot be attacked, since it gives no gradient: {told(error)}."
                ) from error
            levels = (levels - LEVELS * slope.sign()).clamp(0, 255)
    attacked: NDArray[np.uint8] = levels.detach().permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()
    return attacked
