"""The limit: loops of a method's arithmetic in plain PyTorch, with nothing around it."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from benchmarks.algorithm_1 import Algorithm1
from benchmarks.passes import Pass, Passes
from benchmarks.tent import Tent
from ttc_core.methods.ttc_stream import LEARNED_FROM, LEARNING_RATE
from ttc_core.model import SourceModel

Loop = Callable[[Tensor], Tensor]
"""Answers a batch (N, 3, H, W) uint8 with logits (N, K), and learns from it."""


class Source:
    """One forward pass of the frozen network."""

    def __init__(self, network: nn.Module, mean: Tensor, std: Tensor) -> None:
        self.network, self.mean, self.std = network.eval(), mean, std

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Answer a batch."""
        logits: Tensor = self.network((images / 255 - self.mean) / self.std)
        return logits


class Repeated:
    """The passes that the served default made over the same batches, and no more.

    Statistics that follow a stream are those of a network in training mode: moments of each batch
    into running ones. The first layers keep their scales and shifts, as the default's do. What the
    source was asked, it is asked as it is.

    Args:
        network: is changed in place.
        mean, std: (3, 1, 1), for values in [0, 1].
        made: a batch each, in order; whether the optimizer stepped behind it.
    """

    def __init__(
        self, network: nn.Module, mean: Tensor, std: Tensor, made: Sequence[tuple[Passes, bool]]
    ) -> None:
        self.source = copy.deepcopy(network).eval()
        self.network, self.mean, self.std = network.train().requires_grad_(False), mean, std
        layers = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
        learned = [
            parameter
            for layer in layers[int(LEARNED_FROM * len(layers)) :]
            for parameter in (layer.weight, layer.bias)
        ]
        for parameter in learned:
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.Adam(learned, lr=LEARNING_RATE)
        self._made = iter(made)

    def __call__(self, images: Tensor) -> Tensor:
        """Answer the next batch."""
        passes, stepped = next(self._made)
        x = (images / 255 - self.mean) / self.std
        answers: list[tuple[Pass, Tensor]] = []
        for made in passes.forward:
            # Of a few images only, where their answers are compared or the others are kept out.
            rows = x[: made.images]
            if made.both_views:
                rows = torch.cat((rows, rows.flip(3)))
            if made.by_source:
                with torch.no_grad():
                    self.source(rows)
                continue
            with torch.set_grad_enabled(made.keeps_graph):
                logits = self.network(rows)
            answers.append((made, sum(logits.chunk(2)) / 2 if made.both_views else logits))
        # The largest answers the images, but for those that were kept out: another answers them.
        answers.sort(key=lambda each: (each[0].keeps_graph, each[0].images), reverse=True)
        if passes.backward:
            log_p = answers[0][1].log_softmax(1)
            loss: Tensor = -(log_p.exp() * log_p).sum(1).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            if stepped:
                self.optimizer.step()
                self.optimizer.zero_grad()
        return torch.cat([answer.detach() for _, answer in answers])[: len(images)]


def bare(
    method: str, model: SourceModel, size: int, made: Sequence[tuple[Passes, bool]] = ()
) -> Loop:
    """The loop of source, tent, ttc or, with what it `made`, of the default.

    It runs on a copy of the model's network, on its device.

    Args:
        size: of the batches.
    """
    network = copy.deepcopy(model.module)
    mean, std = (
        torch.tensor(values, device=model.device)[:, None, None]
        for values in (model.mean, model.std)
    )
    if method == "source":
        return Source(network, mean, std)
    if method == "tent":
        return Tent(network, mean, std)
    if method == "ttc":
        return Algorithm1(network, model.split, mean, std, q=max(1, 200 // size))
    return Repeated(network, mean, std, made)
