"""Running the network on two views of each image."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ttc_core.model import SourceModel
from ttc_core.normalization import Look
from ttc_core.running import Output


def two_views(
    model: SourceModel,
    inputs: Tensor,
    others: Tensor,
    look: Look,
    *,
    affine: Mapping[str, Tensor] | None = None,
    together: bool,
) -> tuple[Output, Output]:
    """Run both views (N, 3, H, W), each in a pass of its own, or `together` in one of 2N images.

    Together they share the batch's statistics; moving statistics need that, since both views are
    one look at the stream.
    """
    if not together:
        return (
            model.run(inputs, affine=affine, look=look),
            model.run(others, affine=affine, look=look),
        )
    both = model.run(torch.cat((inputs, others)), affine=affine, look=look)
    half = len(inputs)
    return (
        Output(both.logits[:half], both.features[:half]),
        Output(both.logits[half:], both.features[half:]),
    )
