"""The source with its early layers' statistics following a stream: a second opinion.

Weather, light and lens show in the early layers, whatever the class; late layers see classes, and
keep the source's statistics. So it is right on many images on which the source is not, and a stream
of one class does not mislead it as it does a network that follows wholly. It learns nothing, and
sees the compared images only. The idea: Gong et al., "SICL", arXiv 2512.07390 (features of another
style, forward only).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ttc_core.flat import Layout
from ttc_core.methods.contract import State
from ttc_core.methods.parts import MOST, bounded
from ttc_core.methods.parts.stream_statistics import EARLY, WARM_START, StreamLook, StreamShare
from ttc_core.model import SourceModel

# The stream's part of what an early layer is normalised with; and images that it runs over.
BLEND, HORIZON = 0.7, 50


@dataclass(frozen=True)
class Style:
    """Moments (P,) of the early layers, one behind the other, and how many images they saw."""

    moments: Tensor
    images: int = 0


class Restyled:
    """The second opinion on one stream.

    Attributes:
        style: what it follows. A network without BatchNorm has none, and answers as the source.
    """

    style: Style

    def __init__(self, model: SourceModel) -> None:
        self._model = model
        names = list(model.moments_layout.shapes)
        moments = model.moments_layout.views(model.source_moments)
        self._source = moments
        early = [name for place, name in enumerate(names) if place < EARLY * len(names)]
        self._layout = Layout.of({name: moments[name] for name in early})
        self.reset()

    @property
    def is_source(self) -> bool:
        """Whether it has nothing that follows, and is no second opinion."""
        return not self._layout.shapes

    def reset(self) -> None:
        self.style = Style(self._layout.flattened(self._source))

    def answers(self, inputs: Tensor) -> tuple[Tensor, Style]:
        """(n, K) logits of normalised images (n, 3, H, W), without gradient, and what the style is
        afterwards; changes nothing. Where an image's moments are no numbers, it stays as it is."""
        count, followed = len(inputs), self._layout.views(self.style.moments)
        rate = max(1 / (WARM_START + self.style.images), 1 / HORIZON)
        weight = 1 - (1 - rate) ** count
        kept = {
            name: (1 - BLEND) * self._source[name] + BLEND * (1 - weight) * each
            for name, each in followed.items()
        }
        look = StreamLook(count, kept, dict.fromkeys(kept, BLEND * weight))
        rows = inputs if count > 1 or self._model.takes_one else torch.cat((inputs, inputs))
        with torch.no_grad():
            logits = self._model.run(rows, look=look).logits[:count]
        moments = self._moved(followed, look.share(), weight)
        if not moments.isfinite().all():
            return logits, self.style
        return logits, Style(moments, self.style.images + count)

    def _moved(self, followed: dict[str, Tensor], share: StreamShare, weight: float) -> Tensor:
        found = share.image_moments
        return self._layout.flattened(
            {
                name: torch.lerp(each, found[name].mean(0).to(each), weight)
                if name in found  # a layer may not be called
                else each
                for name, each in followed.items()
            }
        )

    def state(self) -> State:
        return {"style": {"moments": self.style.moments.clone(), "images": self.style.images}}

    def restore(self, state: State) -> None:
        given, like = state["style"], self.style.moments
        moments = given["moments"]
        sound = isinstance(moments, Tensor) and moments.shape == like.shape
        if not sound or not bool((moments.abs() <= MOST).all()):
            raise ValueError("its style is of another network")
        self.style = Style(moments.to(like), int(bounded(given["images"])))
