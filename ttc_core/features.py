"""Single channels of the features, as a stream's images come by: what Figure 3 is drawn from."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ttc_core.errors import UserError
from ttc_core.model import SourceModel
from ttc_core.running import pooled


def weightiest_channels(model: SourceModel, count: int) -> list[int]:
    """Return the channels of the features that the head weighs most, by its columns' norms.

    Raises:
        UserError: the head is no linear layer, so that its channels have no weights.
    """
    head = model.module.get_submodule(model.split)
    if not isinstance(head, nn.Linear | nn.Conv2d):
        raise UserError(
            f"Channels are chosen by the weights of a linear head; {model.split} is "
            f"{type(head).__name__}."
        )
    norms = head.weight.flatten(1).norm(dim=0)
    chosen: list[int] = norms.argsort(descending=True, stable=True)[:count].tolist()
    return chosen


class FeatureRecorder:
    """Keeps what the head reads while it is entered.

    Args:
        channels: which of the D features are kept.
    """

    def __init__(self, model: SourceModel, channels: Sequence[int]) -> None:
        self._model, self._channels = model, list(channels)
        self._first: Tensor | None = None

    def __enter__(self) -> Self:
        head = self._model.module.get_submodule(self._model.split)
        self._hook = head.register_forward_pre_hook(self._keep)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hook.remove()

    def _keep(self, _head: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if self._first is None:  # later passes of a batch see other views of it
            self._first = inputs[0].detach()

    def take(self, images: int) -> NDArray[np.float32]:
        """Return the batch's features (images, C) float32 and wait for the next batch.

        Every method answers from the plain images first, whatever views it looks at besides.
        """
        first, self._first = self._first, None
        assert first is not None
        kept: NDArray[np.float32] = pooled(first[:images])[:, self._channels].float().cpu().numpy()
        return kept
