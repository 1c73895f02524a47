"""Cuts: images that look other than those just before, further than a stream's images do.

What stood before the camera says nothing of what stands there after a cut, and what earned the
prior its weight may be over (`prior`). Odd pictures in a row are answered alike, whatever they are;
so are the stream's own of one class, but these look as those before them do. How an image looks is
told by the first layer (`conditions`). It is held against how far images usually are from those
just before them, cuts left out: so two kinds of images that follow each other in runs are told
apart each time, where a mean over both would come to lie between them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ttc_core.methods.contract import Prediction, State
from ttc_core.methods.parts import MOST, Numbers, bounded
from ttc_core.methods.parts.conditions import LEAST_VARIANCE, START_VARIANCE, looks_of
from ttc_core.methods.parts.stream_statistics import StreamShare
from ttc_core.model import SourceModel

# Images that tell how it looks just now; those that its spread runs over, and how many the spread
# at the start is worth.
SINCE_CUT, HORIZON, START = 8, 128, 8
# Before so many images nothing is called a cut.
LEAST_IMAGES = 16
# Standard deviations, in the root mean square of the look's numbers, from where on it is one.
CUT = 1.9


@dataclass(frozen=True)
class Scene:
    """How images look; never written in place.

    Attributes:
        mean: (D,) of the latest images since the cut.
        variance: (D,) of how far an image is from those before it, but for cuts.
        since_cut: how many images the mean is of, at most SINCE_CUT.
        images: how many the variance is of.
    """

    mean: Numbers
    variance: Numbers
    since_cut: int = 0
    images: int = 0

    def after(self, look: Numbers) -> tuple["Scene", bool]:
        """With one more image, and whether it is a cut."""
        if self.since_cut == 0:
            return Scene(look, self.variance, 1, self.images), False
        # A mean of n images is itself off by a deviation's 1/√n.
        away = (look - self.mean) ** 2 / (1 + 1 / self.since_cut)
        distance = float(np.sqrt((away / (self.variance + LEAST_VARIANCE)).mean()))
        if self.images >= LEAST_IMAGES and distance > CUT:
            return Scene(look, self.variance, 1, self.images), True
        images, since_cut = self.images + 1, min(self.since_cut + 1, SINCE_CUT)
        variance = self.variance + (away - self.variance) / min(START + images, HORIZON)
        mean = self.mean + (look - self.mean) / since_cut
        return Scene(mean, variance, since_cut, images), False


class Scenes:
    """Follows how the images of one stream look. Where the first layer is never called, no image
    is a cut."""

    def __init__(self, model: SourceModel) -> None:
        self._model = model
        self.reset()

    def reset(self) -> None:
        numbers = 2 * next(iter(self._model.moments_layout.shapes.values()), (0,))[0]
        # Never written in place, so that they take no memory.
        none, start = (np.broadcast_to(value, numbers) for value in (0.0, START_VARIANCE))
        self.scene = Scene(none, start)

    def after(self, share: StreamShare, context: Sequence[bool] | None) -> tuple[Scene, list[bool]]:
        """How it looks after a batch, and (N,) which images are cuts.

        Args:
            context: (N,) off, an image stands alone, and is nothing to the others.
        """
        scene, cuts = self.scene, [False] * share.images
        looks = looks_of(self._model, share) if context is None or any(context) else None
        for row, look in enumerate(() if looks is None else looks):
            if np.isfinite(look).all() and (context is None or context[row]):
                scene, cuts[row] = scene.after(look)
        return scene, cuts

    def commit(self, prediction: Prediction, *, learned: bool) -> None:
        self.scene = prediction.pending.after["scene"]

    def state(self) -> State:
        scene = self.scene
        return {
            "scene": {
                "mean": torch.from_numpy(scene.mean.copy()),
                "variance": torch.from_numpy(scene.variance.copy()),
                "latest": scene.since_cut,  # as saved states have it
                "images": scene.images,
            }
        }

    def restore(self, state: State) -> None:
        self.reset()
        if "scene" not in state:
            return  # it is from before cuts were looked for
        given, like = state["scene"], self.scene.mean
        found = []
        for name in ("mean", "variance"):
            numbers = given[name]
            sound = isinstance(numbers, Tensor) and numbers.shape == like.shape
            if not sound or not bool((numbers.abs() <= MOST).all()):
                raise ValueError("its scene is none of this network's")
            found.append(numbers.double().cpu().numpy().copy())
        mean, variance = found
        if (variance < 0).any():
            raise ValueError("its scene is none of this network's")
        since_cut = int(bounded(given["latest"], most=SINCE_CUT))
        self.scene = Scene(mean, variance, since_cut, int(bounded(given["images"])))
