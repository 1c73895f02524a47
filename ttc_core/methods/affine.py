"""What TENT, ETA, TIPI and TTC share: scales and shifts that a loss moves, step by step."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from ttc_core.errors import ModelError, told
from ttc_core.methods.contract import Adaptation, Pending, Prediction, State
from ttc_core.methods.settings import OptimizerSettings
from ttc_core.methods.views import stream_statistics
from ttc_core.model import SourceModel
from ttc_core.normalization import Look, wide


@dataclass(frozen=True)
class Loss:
    """What one batch's gradient is taken on; scalars.

    Attributes:
        total: on which backward is called.
        entropy, similarity: its terms, for the report only; None where there is none.
        selected: the number of images it is over.
    """

    total: Tensor
    entropy: Tensor
    selected: Tensor
    similarity: Tensor | None = None


@dataclass(frozen=True)
class Gradient:
    """The gradient of one batch's loss, and the loss's numbers on the host.

    Attributes:
        tensors: one for each adapted parameter.
        skipped: None, or why nothing is to be learned from it.
    """

    tensors: list[Tensor]
    total: float
    entropy: float
    similarity: float | None
    selected: int
    skipped: str | None


def differentiated(loss: Tensor, inputs: Sequence[Tensor], called: str) -> list[Tensor]:
    """The gradient of a loss with respect to `inputs`; zeros where it does not depend on them.

    Raises:
        ModelError: the network lets no gradient through to what is `called` so.
    """
    try:
        found = torch.autograd.grad(loss, list(inputs), allow_unused=True)
    except RuntimeError as error:
        raise ModelError(
            f"The network lets no gradient through to {called} ({told(error)}); its forward must "
            "not run under no_grad or inference_mode, nor detach what it computes."
        ) from error
    return [
        torch.zeros_like(given) if tensor is None else tensor
        for tensor, given in zip(found, inputs, strict=True)
    ]


def gradient(loss: Loss, parameters: Sequence[Tensor]) -> Gradient:
    """Differentiate a loss with respect to the parameters a batch was predicted with.

    A loss over nothing, and one that is not finite or has such a gradient, is marked to be skipped.

    Raises:
        ModelError: the network lets no gradient through.
    """
    tensors = differentiated(loss.total, parameters, "its scales and shifts")
    similarity = loss.entropy if loss.similarity is None else loss.similarity
    terms = (loss.total, loss.entropy, similarity, loss.selected.to(loss.total.dtype))
    # One transfer for all numbers: each would make a GPU wait.
    numbers = torch.stack([*(term.detach() for term in terms), get_total_norm(tensors)])
    total, entropy_term, similarity_term, count, norm = numbers.tolist()
    skipped = None
    if count == 0:
        skipped = "none_selected"
    elif not (math.isfinite(total) and math.isfinite(norm)):
        skipped = "non_finite"
    return Gradient(
        tensors=tensors,
        total=total,
        entropy=entropy_term,
        similarity=None if loss.similarity is None else similarity_term,
        selected=int(count) if math.isfinite(count) else 0,
        skipped=skipped,
    )


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
        self._model = model
        self._source = {name: p.to(wide(p.dtype)) for name, p in model.affine.items()}
        norm = get_total_norm(list(self._source.values()))
        self._source_norm = torch.where(norm > 0, norm, 1)
        self._settings = settings
        self.reset()

    def reset(self) -> None:
        """Back to the source's parameters, a fresh optimizer, nothing pending."""
        self._masters = {name: tensor.clone() for name, tensor in self._source.items()}
        self._optimizer = self._new_optimizer()
        self._gradients: list[Tensor] = []
        self.pending_batches = self.pending_images = self.steps = 0
        self.drift = 0.0
        self._publish()

    def _new_optimizer(self) -> torch.optim.Optimizer:
        s, masters = self._settings, list(self._masters.values())
        common: dict[str, Any] = {"lr": s.lr, "weight_decay": s.weight_decay}
        if s.optimizer == "sgd":
            return torch.optim.SGD(
                masters, **common, momentum=s.optimizer_momentum, nesterov=s.nesterov
            )
        return torch.optim.Adam(masters, **common, betas=s.betas, eps=s.eps)

    def _publish(self) -> None:
        """Make what the optimizer holds what the forward passes use."""
        self.parameters = {
            name: master.clone().requires_grad_() for name, master in self._masters.items()
        }

    def _measure(self) -> tuple[float, bool]:
        """The masters' drift, and whether all that lasts is finite, in the network's precision too.

        One transfer to the host for both.
        """
        masters = list(self._masters.values())
        pairs = zip(masters, self._source.values(), strict=True)
        moved = [master - source for master, source in pairs]
        seen = [
            master.to(given.dtype)
            for master, given in zip(masters, self._model.affine.values(), strict=True)
            if master.dtype != given.dtype
        ]
        lasting = [*masters, *self._optimizer_tensors().values()]
        largest = [
            get_total_norm(tensors, norm_type=math.inf).to(self._source_norm)
            for tensors in (lasting, seen)
            if tensors
        ]
        distance, *largest_numbers = torch.stack(
            [get_total_norm(moved) / self._source_norm, *largest]
        ).tolist()
        return distance, all(map(math.isfinite, (distance, *largest_numbers)))

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        """What the optimizer keeps of each parameter: "exp_avg:NAME", say; not its counters."""
        return {
            f"{key}:{name}": value
            for name, master in self._masters.items()
            for key, value in self._optimizer.state.get(master, {}).items()
            if isinstance(value, Tensor)
        }

    def learn(
        self, batch: Gradient, *, images: int, step: bool, lr: float | None = None
    ) -> Adaptation:
        """Add a batch's gradient to what waits, and step if it is time to.

        A gradient that is to be skipped leaves everything as it was; so does a step after which
        anything that lasts would not be finite.

        Args:
            images: how many were predicted.
            step: whether the optimizer moves after this batch.
            lr: of this step; None: the settings'.
        """
        if batch.skipped is not None:
            return Adaptation(skipped=batch.skipped, drift=self.drift)
        before = self._gradients, self.pending_batches, self.pending_images
        self._accumulate(batch.tensors, images)
        if step and not self.step(lr):
            self._gradients, self.pending_batches, self.pending_images = before
            return Adaptation(skipped="non_finite", drift=self.drift)
        return Adaptation(
            loss=batch.total,
            entropy=batch.entropy,
            similarity=batch.similarity,
            selected=batch.selected,
            stepped=step,
            drift=self.drift,
        )

    def _accumulate(self, gradients: list[Tensor], images: int) -> None:
        if self._gradients:
            gradients = [a + b for a, b in zip(self._gradients, gradients, strict=True)]
        self._gradients = gradients
        self.pending_batches += 1
        self.pending_images += images

    def step(self, lr: float | None = None) -> bool:
        """Let the optimizer move the parameters by what waits; return whether it did.

        A step that would leave a number that is not finite is undone.
        """
        kept = {key: value.clone() for key, value in self._optimizer_tensors().items()}
        if lr is not None:
            self._optimizer.param_groups[0]["lr"] = lr
        for master, gradient in zip(self._masters.values(), self._gradients, strict=True):
            master.grad = gradient
        finite = False
        try:
            self._optimizer.step()
            self._optimizer.zero_grad()
            drift, finite = self._measure()
        except RuntimeError as error:
            # A step too large for the parameters' type raises instead of overflowing.
            if "overflow" not in str(error):
                raise
        finally:
            if not finite:
                self._take_up({k: p.detach() for k, p in self.parameters.items()}, kept)
        if not finite:
            return False
        self.drift = drift
        self._gradients = []
        self.pending_batches = self.pending_images = 0
        self.steps += 1
        self._publish()
        return True

    def _take_up(self, masters: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> None:
        """Replace parameters and what the optimizer keeps of them by copies of these."""
        self._masters = {
            name: masters[name].to(source, copy=True) for name, source in self._source.items()
        }
        self._optimizer = self._new_optimizer()
        for entry, value in optimizer.items():
            key, name = entry.split(":", 1)
            master = self._masters[name]
            # Adam counts its steps on the host, whatever the device of the parameters.
            value = value.to("cpu", copy=True) if key == "step" else value.to(master, copy=True)
            self._optimizer.state[master][key] = value

    def copy(self) -> Self:
        """Another learner that goes on from here, on its own."""
        other = type(self)(self._model, self._settings)
        other.restore(self.state())
        return other

    def state(self) -> State:
        """Copies of the parameters, the pending gradients, the optimizer's moments, counters."""
        pending = dict(zip(self._masters, self._gradients, strict=False))
        return {
            "affine": {name: tensor.clone() for name, tensor in self._masters.items()},
            "gradients": {name: tensor.clone() for name, tensor in pending.items()},
            "optimizer": {k: value.clone() for k, value in self._optimizer_tensors().items()},
            "counters": {
                "steps": self.steps,
                "pending_batches": self.pending_batches,
                "pending_images": self.pending_images,
            },
        }

    def restore(self, state: State) -> None:
        """Take up what `state` gave."""
        self._take_up(state["affine"], state["optimizer"])
        self._gradients = [
            state["gradients"][name].to(source, copy=True)
            for name, source in self._source.items()
            if state["gradients"]
        ]
        counters = state["counters"]
        self.steps = int(counters["steps"])
        self.pending_batches = int(counters["pending_batches"])
        self.pending_images = int(counters["pending_images"])
        self.drift = self._measure()[0]
        self._publish()


class AffineMethod:
    """A method that moves scales and shifts by the gradient of a loss on what it just answered.

    A subclass predicts, keeping in `Prediction.pending` what its loss needs, and says what that
    loss is and when the optimizer steps.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[OptimizerSettings]]
    adapts: ClassVar[frozenset[str]] = frozenset({"affine", "moments"})
    selects: ClassVar[bool] = True

    def __init__(self, model: SourceModel, **settings: Any) -> None:
        self._settings = self.Settings.create(self.name, model.classes, settings)
        self.model = model
        self._statistics = stream_statistics(model, self._settings)
        self._learner = AffineLearner(model, self._settings)

    @property
    def settings(self) -> dict[str, Any]:
        return self._settings.model_dump()

    @property
    def version(self) -> int:
        return self._learner.steps

    @property
    def pending_batches(self) -> int:
        return self._learner.pending_batches

    @property
    def drift(self) -> float:
        return self._learner.drift

    def adapt(self, prediction: Prediction, *, learn: bool = True) -> Adaptation:
        pending = prediction.pending
        if learn and not pending.parameters:
            raise ValueError(
                "This prediction was made with learn=False and has no graph to learn by; adapt to "
                "it with learn=False."
            )
        if not prediction.can_teach():
            return Adaptation(skipped="non_finite", drift=self.drift)
        share = pending.share
        if not learn:
            self._statistics.commit(share)
            return Adaptation(skipped="shed", drift=self.drift)
        images = len(prediction)
        outcome = self._learner.learn(
            self._gradient(prediction),
            images=images,
            step=self._step_is_due(images),
            lr=self._rate(images),
        )
        if outcome.skipped != "non_finite":
            self._statistics.commit(share)
        if outcome.skipped is None:
            self._learned(prediction)
        return outcome

    def _pending(
        self, entropies: Tensor, look: Look, *, learn: bool, similarity: Tensor | None = None
    ) -> Pending:
        """What `adapt` needs of a pass; without learning, its share in the statistics alone."""
        share = self._statistics.share(look)
        if not learn:
            return Pending(share=share)
        parameters = tuple(self._learner.parameters.values())
        return Pending(parameters, entropies, similarity, share)

    def _gradient(self, prediction: Prediction) -> Gradient:
        with torch.enable_grad():
            loss = self._loss(prediction)
        return gradient(loss, prediction.pending.parameters)

    def _loss(self, prediction: Prediction) -> Loss:
        raise NotImplementedError

    def _step_is_due(self, images: int) -> bool:
        """Whether the optimizer moves after the batch at hand, of that many images."""
        return True

    def _rate(self, images: int) -> float | None:
        """The learning rate of a step on that many images; None: the settings'."""
        return None

    def _learned(self, prediction: Prediction) -> None:
        """A batch's gradient was taken up: move whatever else follows the batches."""

    def reset(self) -> None:
        self._learner.reset()
        self._statistics.reset()

    def state(self) -> State:
        return {**self._learner.state(), "moments": self._statistics.state()}

    def restore(self, state: State) -> None:
        self._learner.restore(state)
        self._statistics.restore(state["moments"])

    def fork(self) -> Self:
        return type(self)(self.model, **self.settings)


class DrawingMethod(AffineMethod):
    """One that draws anew for each batch: adapting to the same batch again draws the same."""

    # Batches whose gradient was taken since the start; restarts with `reset`.
    _learned_batches = 0

    def _learned(self, prediction: Prediction) -> None:
        self._learned_batches += 1

    def reset(self) -> None:
        super().reset()
        self._learned_batches = 0

    def state(self) -> State:
        state = super().state()
        state["counters"]["learned_batches"] = self._learned_batches
        return state

    def restore(self, state: State) -> None:
        super().restore(state)
        self._learned_batches = int(state["counters"]["learned_batches"])
