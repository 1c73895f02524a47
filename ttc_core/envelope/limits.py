"""An envelope as it holds for one network's scales and shifts; all its streams share it."""

import math

import torch
from torch import Tensor

from ttc_core.envelope.clauses import UNBOUNDED, Envelope
from ttc_core.model import SourceModel

# A saved state that is further outside is another envelope's. A snapshot's numbers are rounded.
ROUNDING = 1.01
# How often a way is shortened until rounding leaves it inside; then nothing of it is left.
_TRIES = 24


class OutsideEnvelopeError(ValueError):
    """A state is outside; the text says by which clause."""


def distance(parameters: Tensor, source: Tensor) -> Tensor:
    """‖θ − θ_source‖₂ / ‖θ_source‖₂, a scalar; where the source's norm is 0, the distance."""
    norm = source.norm()
    found: Tensor = (parameters - source).norm() / torch.where(norm > 0, norm, 1)
    return found


class Limits:
    """Where parameters may be.

    Attributes:
        envelope: whose limits they are.
        fixed: (P,) bool, which parameters may not move; None: all may.
        none_may_move: of them none may.
        head_may_move: whether prototypes may stand in the place of the head's weight.
        images_between_steps: at least so many; 0: any number, infinite: no step is taken.

    Raises:
        ValueError: a pattern fits no name.
    """

    def __init__(self, model: SourceModel, envelope: Envelope = UNBOUNDED) -> None:
        self.envelope, self._source = envelope, model.source_affine
        head = f"{model.split}.weight"
        names = {**model.affine, head: None}
        for pattern in envelope.unmatched(names):
            some = ", ".join(list(names)[:3])
            raise ValueError(
                f"The envelope's parameters: {pattern!r} fits none of the network's scales and "
                f"shifts, nor its head's weight; they are called {some}, …."
            )
        moving = {name for name in names if envelope.lets_move(name)}
        self.head_may_move = head in moving
        self.fixed: Tensor | None = None
        self.none_may_move = not envelope.moves_all and not moving & model.affine.keys()
        if not model.affine.keys() <= moving:
            sizes = {name: math.prod(shape) for name, shape in model.affine_layout.shapes.items()}
            each = [torch.full((size,), name not in moving) for name, size in sizes.items()]
            self.fixed = torch.cat(each).to(self._source.device)
        steps = envelope.steps_per_1000_images
        self.images_between_steps = math.ceil(1000 / steps) if steps else math.inf
        if steps == 1000:  # a batch has an image at least: a step an image is no bound
            self.images_between_steps = 0

    def weight_of(self, images: float) -> float:
        """What so many images that count alike may weigh in statistics, beside all before."""
        return min(1.0, self.envelope.image_in_statistics * images)

    def with_fixed(self, parameters: Tensor) -> Tensor:
        """Parameters (P,), of which those that may not move are the source's."""
        if self.fixed is None:
            return parameters
        return torch.where(self.fixed, self._source, parameters)

    def are_beyond(self, drift: float, largest: float) -> bool:
        """Whether parameters are outside, of that drift and largest change."""
        return drift > self.envelope.drift or largest > self.envelope.largest_change

    def nearest(self, parameters: Tensor) -> tuple[Tensor, list[str]]:
        """Bring parameters (P,) that are beyond back to the edge.

        Each is cut to the largest change; if they are then still too far together, all go the
        same share of their way back.

        Returns:
            Them, and the clauses that they went beyond.
        """
        source, clauses = self._source, list[str]()
        if self._change(parameters) > self.envelope.largest_change:
            clauses.append("largest_change")
            parameters = self._cut_each(parameters)
        drift = float(distance(parameters, source))
        if drift > self.envelope.drift:
            clauses.append("drift")
            way, whole = parameters - source, self.envelope.drift / drift
            for attempt in range(_TRIES):
                share = whole * max(0.0, 1 - 2.0 ** (attempt - _TRIES + 1))
                parameters = self._cut_each(source + share * way)
                if float(distance(parameters, source)) <= self.envelope.drift:
                    break
        return parameters, clauses

    def _change(self, parameters: Tensor) -> float:
        return float((parameters - self._source).abs().max()) if parameters.numel() else 0.0

    def _cut_each(self, parameters: Tensor) -> Tensor:
        """Each no further from the source's than the largest change, after rounding, too."""
        source = self._source
        # As a number of the parameters' type: a tensor is compared with it as one.
        most = source.new_tensor(self.envelope.largest_change)
        if math.isinf(most):
            return parameters
        if float(most) > self.envelope.largest_change:
            most = torch.nextafter(most, torch.zeros_like(most))
        cut = torch.clamp(parameters, source - most, source + most)
        for _ in range(2):
            beyond = (cut - source).abs() > most
            cut = torch.where(beyond, torch.nextafter(cut, source), cut)
        return torch.where((cut - source).abs() > most, source, cut)

    def taken_up(self, parameters: Tensor) -> Tensor:
        """The parameters (P,) of a saved state, or a snapshot; what rounding has put outside is
        brought back.

        Raises:
            OutsideEnvelopeError: they are outside by more than that, or some moved that may not.
        """
        if self.fixed is not None and not torch.equal(self.with_fixed(parameters), parameters):
            raise OutsideEnvelopeError(
                "parameters moved that the envelope's parameters do not name"
            )
        found = {
            "drift": float(distance(parameters, self._source)),
            "largest_change": self._change(parameters),
        }
        for clause, value in found.items():
            most = getattr(self.envelope, clause)
            # What is no number is outside, but where there is no bound.
            if not (value <= most * ROUNDING or math.isinf(most)):
                raise OutsideEnvelopeError(
                    f"its {clause.replace('_', ' ')} is {value:.3g}, and the envelope allows "
                    f"{most:g}"
                )
        return self.nearest(parameters)[0] if self.are_beyond(*found.values()) else parameters
