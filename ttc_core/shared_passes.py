"""Passes of a network that several streams share: whether they may, and how they do."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ttc_core.errors import ModelError
from ttc_core.flat import stacked
from ttc_core.normalization import JoinedLook, Look, OwnLook, Rows, source_look
from ttc_core.running import Output, Runner
from ttc_core.together import Failed, attempted


@dataclass(frozen=True, eq=False)
class WantedPass:
    """A pass that is wanted of a network; see `SourceModel.run`.

    Attributes:
        shares: whether several streams may share one of it, asked where there are several.
        graph: whether gradients are wanted.
    """

    runner: Runner
    shares: Callable[[], bool]
    inputs: Tensor
    affine: Mapping[str, Tensor] | None
    look: Look
    graph: bool

    @property
    def turn(self) -> int:
        """What a stream may want before it is answered, its answer, and then what is compared."""
        if self.affine is not None:
            return 1
        return 0 if self.look is source_look else 2

    @property
    def group(self) -> Hashable:
        layers: tuple[str, ...] | None = None
        if self.look is not source_look and self.runner.batch_norms:
            if not isinstance(self.look, OwnLook):
                return None
            layers = tuple(self.look.kept)
        if not self.shares():
            return None
        replaced = None if self.affine is None else tuple(self.affine)
        shape, dtype = self.inputs.shape[1:], self.inputs.dtype
        return id(self.runner), shape, dtype, replaced, layers, self.graph

    def alone(self) -> Output:
        # Of whoever asks: among others, the thread's mode is nobody's.
        with torch.set_grad_enabled(self.graph):
            return self.runner.run(self.inputs, self.affine, self.look)

    @classmethod
    def at_once(cls, wanted: Sequence[Self]) -> Sequence[Output | Failed]:
        """One pass for all; where that fails, in halves, until it is whose failure it is."""
        if len(wanted) == 1:
            return [attempted(wanted[0].alone)]
        try:
            return cls._joined(wanted)
        except (MemoryError, torch.OutOfMemoryError):
            raise  # fewer images may fit
        except Exception:
            middle = len(wanted) // 2
            return [*cls.at_once(wanted[:middle]), *cls.at_once(wanted[middle:])]

    @classmethod
    def _joined(cls, wanted: Sequence[Self]) -> Sequence[Output]:
        runner, counts = wanted[0].runner, [len(each.inputs) for each in wanted]
        own = [each.affine for each in wanted if each.affine is not None]
        affine = stacked(own) if own else None
        looks = [each.look for each in wanted if isinstance(each.look, OwnLook)]
        look = None
        if looks and runner.batch_norms:
            look = JoinedLook(looks, counts, stacked([each.kept for each in looks]))
        # Without anything of their own, whose rows they are makes no difference.
        rows = Rows.of(counts, runner.device) if own or look else None
        inputs = torch.cat([each.inputs for each in wanted])
        with torch.set_grad_enabled(wanted[0].graph):
            output = runner.run(inputs, affine, look or source_look, rows)
        if look is not None:
            look.tell()
        each_of = (torch.split(each, counts) for each in (output.logits, output.features))
        return [Output(*each) for each in zip(*each_of, strict=True)]


def may_share(runner: Runner, inputs: Tensor, least: float) -> bool:
    """Whether several streams may share a pass: a row's answer depends on its stream alone.

    Args:
        inputs: (4, 3, H, W), normalised noise, two rows of each of two streams.
        least: of the largest number, what rounding may make.
    """
    others = {name: 1.1 * each + 0.1 for name, each in runner.affine.items()}
    both = {name: torch.stack((runner.affine[name], others[name])) for name in others}
    try:
        with torch.no_grad():
            rows = Rows.of((2, 2), runner.device)
            joined = runner.run(inputs, both, source_look, rows)
            plain = runner.run(inputs, None, source_look)
            alone = [runner.run(inputs[:2], None, source_look)]
            alone += [runner.run(inputs[2:], each, source_look) for each in (others, None)]
    except ModelError:
        return False
    return all(
        _alike(got, torch.cat((getattr(alone[0], name), getattr(other, name))), least)
        for name in ("logits", "features")
        for got, other in ((getattr(joined, name), alone[1]), (getattr(plain, name), alone[2]))
    )


def _alike(got: Tensor, expected: Tensor, least: float) -> bool:
    """Whether they differ by `least` of the largest number at most."""
    return bool((got - expected).abs().max() <= least * expected.abs().max())
