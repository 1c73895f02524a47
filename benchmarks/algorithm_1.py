"""The paper's Algorithm 1, typed in whole with plain PyTorch: what ours is compared with.

Nothing here comes from our packages: a network in training mode (its BatchNorm layers use the
batch's statistics), Adam on their scales and shifts, two forward passes a batch.
"""

import torch
from torch import Tensor, nn


def adaptable(network: nn.Module) -> list[Tensor]:
    """Put a network into training mode, with the batch's statistics; return scales and shifts."""
    network.train().requires_grad_(False)
    parameters = []
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = None
            parameters += [layer.weight, layer.bias]
    for parameter in parameters:
        parameter.requires_grad_(True)
    return parameters


class Algorithm1:
    """TTC on a network whose last layer is `network.<head>`.

    Args:
        network: is changed in place.
        mean, std: (3, 1, 1), for values in [0, 1].
    """

    def __init__(self, network: nn.Module, head: str, mean: Tensor, std: Tensor, q: int) -> None:
        self.network, self.mean, self.std, self.q = network, mean, std, q
        self.optimizer = torch.optim.Adam(adaptable(network), lr=1e-3)
        self.features: Tensor | None = None
        network.get_submodule(head).register_forward_pre_hook(self._keep)
        self.counter = 0

    def _keep(self, _layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.features = inputs[0]

    def __call__(self, images: Tensor) -> Tensor:
        """Answer a batch (N, 3, H, W) uint8 with logits (N, K), then learn from it."""
        x = (images / 255 - self.mean) / self.std
        z = self.network(x)
        g = self.features
        z_flip = self.network(x.flip(3))
        g_flip = self.features

        kappa = torch.exp(-((g - g_flip) ** 2).sum(1) / 2)
        con = kappa * ((z - z_flip) ** 2).sum(1)
        z_mean = (z + z_flip) / 2
        log_p = z_mean.log_softmax(1)
        ent = -(log_p.exp() * log_p).sum(1)
        selected = ent <= ent.mean()

        loss = (ent + con)[selected].mean()
        loss.backward()
        self.counter += 1
        if self.counter % self.q == 0:
            self.optimizer.step()
            self.optimizer.zero_grad()
        return z_mean.detach()
