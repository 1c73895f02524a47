"""What TENT, TTC and their kin share: scales and shifts that a loss moves, step by step."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from ttc_core.methods.contract import Adaptation, State
from ttc_core.methods.settings import OptimizerSettings
from ttc_core.model import SourceModel


class AffineLearner:
    """The affine parameters of one stream, their optimizer, and the gradients waiting for a step.

    Attributes:
        parameters: by the network's own names; the tensors a forward pass uses. A step replaces
            them, so that predictions made before it keep a valid graph.
        steps: optimizer steps since the start or the last reset.
        pending_batches, pending_images: what waits for the next step.
        drift: ‖θ − θ_source‖₂ / ‖θ_source‖₂.
    """

    def __init__(self, model: SourceModel, settings: OptimizerSettings) -> None:
        self._source = model.affine
        self._source_norm = get_total_norm(list(self._source.values()))
        self._settings = settings
        self.reset()

    def reset(self) -> None:
        """Back to the source's parameters, a fresh optimizer, nothing pending."""
        self._masters = {name: tensor.clone() for name, tensor in self._source.items()}
        self._optimizer = self._new_optimizer()
        self._gradients: list[Tensor] = []
        self.pending_batches = self.pending_images = self.steps = 0
        self._publish()

    def _new_optimizer(self) -> torch.optim.Optimizer:
        s, masters = self._settings, list(self._masters.values())
        common: dict[str, Any] = {"lr": s.lr, "weight_decay": s.weight_decay}
        if s.optimizer == "sgd":
            return torch.optim.SGD(masters, **common, momentum=s.momentum, nesterov=s.nesterov)
        return torch.optim.Adam(masters, **common, betas=s.betas, eps=s.eps)

    def _publish(self) -> None:
        """Make what the optimizer holds what the forward passes use."""
        self.parameters = {
            name: master.clone().requires_grad_() for name, master in self._masters.items()
        }
        pairs = zip(self._masters.values(), self._source.values(), strict=True)
        moved = get_total_norm([master - source for master, source in pairs])
        self.drift = float(moved / self._source_norm)

    def learn(
        self,
        *,
        loss: Tensor,
        entropy: Tensor,
        similarity: Tensor | None,
        selected: Tensor,
        parameters: Sequence[Tensor],
        images: int,
        step: bool,
    ) -> Adaptation:
        """Add the gradient of a batch's loss to what waits, and step if it is time to.

        A loss over nothing, or one that is not finite or has such a gradient, leaves everything
        as it was.

        Args:
            loss: scalar; entropy, similarity: its terms, scalars, for the report only.
            selected: scalar, the number of images the loss is over.
            parameters: those with which the batch was predicted.
            images: how many were predicted.
            step: whether the optimizer moves after this batch.
        """
        found = torch.autograd.grad(loss, list(parameters), allow_unused=True)
        gradients = [
            torch.zeros_like(parameter) if gradient is None else gradient
            for gradient, parameter in zip(found, parameters, strict=True)
        ]
        no_similarity = similarity is None
        row = (loss, entropy, entropy if similarity is None else similarity)
        numbers = torch.stack([*row, selected.to(loss.dtype), get_total_norm(gradients)])
        total, entropy_term, similarity_term, count, norm = numbers.tolist()
        if count == 0:
            return Adaptation(skipped="none_selected", drift=self.drift)
        if not (math.isfinite(total) and math.isfinite(norm)):
            return Adaptation(skipped="non_finite", drift=self.drift)
        self._accumulate(gradients, images)
        if step:
            self.step()
        return Adaptation(
            loss=total,
            entropy=entropy_term,
            similarity=None if no_similarity else similarity_term,
            selected=int(count),
            stepped=step,
            drift=self.drift,
        )

    def _accumulate(self, gradients: list[Tensor], images: int) -> None:
        if self._gradients:
            gradients = [a + b for a, b in zip(self._gradients, gradients, strict=True)]
        self._gradients = gradients
        self.pending_batches += 1
        self.pending_images += images

    def step(self) -> None:
        """Let the optimizer move the parameters by what waits."""
        for master, gradient in zip(self._masters.values(), self._gradients, strict=True):
            master.grad = gradient
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._gradients = []
        self.pending_batches = self.pending_images = 0
        self.steps += 1
        self._publish()

    def state(self) -> State:
        """Copies of the parameters, the pending gradients, the optimizer's moments, counters."""
        optimizer = {
            f"{key}:{name}": value.clone()
            for name, master in self._masters.items()
            for key, value in self._optimizer.state.get(master, {}).items()
            if isinstance(value, Tensor)
        }
        pending = dict(zip(self._masters, self._gradients, strict=False))
        return {
            "affine": {name: tensor.clone() for name, tensor in self._masters.items()},
            "gradients": {name: tensor.clone() for name, tensor in pending.items()},
            "optimizer": optimizer,
            "counters": {
                "steps": self.steps,
                "pending_batches": self.pending_batches,
                "pending_images": self.pending_images,
            },
        }

    def restore(self, state: State) -> None:
        """Take up what `state` gave."""
        self._masters = {
            name: state["affine"][name].to(source.device, copy=True)
            for name, source in self._source.items()
        }
        self._optimizer = self._new_optimizer()
        for entry, value in state["optimizer"].items():
            key, name = entry.split(":", 1)
            # Adam counts its steps on the host, whatever the device of the parameters.
            device = "cpu" if key == "step" else self._masters[name].device
            self._optimizer.state[self._masters[name]][key] = value.to(device, copy=True)
        self._gradients = [
            state["gradients"][name].to(source.device, copy=True)
            for name, source in self._source.items()
            if state["gradients"]
        ]
        counters = state["counters"]
        self.steps = int(counters["steps"])
        self.pending_batches = int(counters["pending_batches"])
        self.pending_images = int(counters["pending_images"])
        self._publish()
