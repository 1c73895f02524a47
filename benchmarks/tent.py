"""TENT, typed in whole with plain PyTorch: what ours is compared with."""

import torch
from torch import Tensor, nn

from benchmarks.algorithm_1 import adaptable


class Tent:
    """One step of Adam on the mean entropy of each batch.

    Args:
        network: is changed in place.
        mean, std: (3, 1, 1), for values in [0, 1].
    """

    def __init__(self, network: nn.Module, mean: Tensor, std: Tensor) -> None:
        self.network, self.mean, self.std = network, mean, std
        self.optimizer = torch.optim.Adam(adaptable(network), lr=1e-3)

    def __call__(self, images: Tensor) -> Tensor:
        """Answer a batch (N, 3, H, W) uint8 with logits (N, K), then learn from it."""
        logits = self.network((images / 255 - self.mean) / self.std)
        log_p = logits.log_softmax(1)
        loss = -(log_p.exp() * log_p).sum(1).mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return logits.detach()
