"""What the images just before say about the next one's class: a prior that has to earn its weight.

Sources: the experts' mixture is Herbster & Warmuth's fixed share ("Tracking the best expert",
1998) with the experts' likelihoods for losses; METHOD §1.9 has the study it was chosen in.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ttc_core.methods.contract import Prediction, State
from ttc_core.methods.parts import Numbers, bounded, distributions

# What is expected: what stands before the camera, and what has been there of late. Each is the
# average of the answers over so many images and, with so much of a chance, any class.
HORIZONS, ANY_CLASS = (1.5, 16.0), (0.1, 0.01)
# Of the network's answer.
TEMPERATURES = (1.0, 3.0)
# What the expert that expects nothing weighs at the start, and the share of all weight that is
# dealt out anew after each image.
UNIFORM_WEIGHT = 0.8
SHARE = 0.01
# The same before an image that is a cut: it looks other than those that earned the weight.
SHARE_AT_CUT = 0.5
# An image moves the experts' weights by this factor at most: e⁵.
MOST_EVIDENCE = 5.0
# Images over which the usual answer runs, and how many an even one is worth at the start.
USUAL_HORIZON, USUAL_START = 400, 8
# How uneven the usual answer may be, K·Σm² − 1: six equally frequent classes of ten have 0.67.
UNEVEN = 0.3


@dataclass(frozen=True)
class Context:
    """What the prior knows; never written in place.

    Attributes:
        averages: (H, K) the answers of late, over each horizon; rows sum to 1.
        weights: (1, 1 + T·H) of the experts, the uniform one first; they sum to 1.
        usual: (T, K) the network's average answer at each temperature; rows sum to 1.
        images: how many had a say since the conditions changed.
    """

    averages: Numbers
    weights: Numbers
    usual: Numbers
    images: int = 0


class TemporalPrior:
    """Mixes the network's answer with what the images before lead to expect.

    Each expert expects a class by the latest answers and weighs with that the network's answer,
    softened by a temperature; one expects nothing and takes the answer as it is. An expert's
    evidence is how well what it expects fits the image's answer, over how well it fits the stream's
    usual answer: on images in no order that is 1 on average, whatever classes the network favours,
    so that the prior has no say. A stream of few classes has a usual answer that is very uneven;
    only UNEVEN of that is taken for the network's own. Where the images begin to look other, half
    of what was earned is dealt out anew: twelve odd pictures answered alike would else have the
    stream's own expected to be that, too. Where conditions change, so do the network's habits: what
    is usual, and all weight, begin anew.
    """

    def __init__(self, classes: int) -> None:
        self._classes = classes
        experts = len(HORIZONS) * len(TEMPERATURES)
        self._first = np.full((1, 1 + experts), (1 - UNIFORM_WEIGHT) / experts)
        self._first[0, 0] = UNIFORM_WEIGHT
        self._decays = 1 / np.array(HORIZONS)[:, None]
        self._any_class = np.array(ANY_CLASS)[:, None]
        self.reset()

    def reset(self) -> None:
        self._context = Context(self._even(HORIZONS), self._first, self._even(TEMPERATURES))

    def restart(self) -> None:
        """Under other conditions: what is usual, and what that earned, is of those before; what
        stands before the camera may be the same."""
        self._context = replace(
            self._context, weights=self._first, usual=self._even(TEMPERATURES), images=0
        )

    def _even(self, rows: Sequence[float]) -> Numbers:
        return np.broadcast_to(1 / self._classes, (len(rows), self._classes))

    @property
    def weight(self) -> float:
        """Of the experts that expect something, of all experts'; in [0, 1]."""
        return float(1 - self._context.weights[0, 0])

    def answers(
        self,
        logits: Tensor,
        context: Sequence[bool] | None = None,
        cuts: Sequence[bool] | None = None,
    ) -> tuple[Tensor, Context, Numbers]:
        """Answer images in their order.

        Args:
            logits: (N, K), the network's.
            context: (N,) off, an image's answer is the network's, and the prior does not move.
            cuts: (N,) which look other than the images before them (`scene`); None: none.

        Returns:
            (N, K) probabilities, the context after them, and (N,) what the experts that expect
            something weighed in each, nan where the answer is the network's.
        """
        averages, usual = self._context.averages, self._context.usual
        weights, images = self._context.weights[0], self._context.images
        scores = logits.detach().double().cpu().numpy()
        # (T, N, K)
        said = np.stack([_softmax(scores / temperature) for temperature in TEMPERATURES])
        answers, weighed = np.empty_like(scores), np.full(len(scores), np.nan)
        for number in range(len(scores)):
            if not np.isfinite(scores[number]).all():
                answers[number] = np.nan  # it says nothing, and nothing follows from it
                continue
            if context is not None and not context[number]:
                answers[number] = said[0, number]
                continue
            if cuts is not None and cuts[number]:
                weights = (1 - SHARE_AT_CUT) * weights + SHARE_AT_CUT * self._first[0]
            prior = (1 - self._any_class) * averages + self._any_class / self._classes
            joint = said[:, number, None, :] * prior  # (T, H, K)
            fit = joint.sum(axis=2)
            posteriors = (joint / fit[..., None]).reshape(-1, self._classes)
            evidence = (fit / (self._tempered(usual) @ prior.T)).ravel()
            evidence = np.clip(evidence, np.exp(-MOST_EVIDENCE), np.exp(MOST_EVIDENCE))
            weights = weights * np.concatenate(([1.0], evidence))
            weights /= weights.sum()
            weighed[number] = 1 - weights[0]
            answer = weights[0] * said[0, number] + weights[1:] @ posteriors
            weights = (1 - SHARE) * weights + SHARE * self._first[0]
            averages = averages + self._decays * (answer - averages)
            images += 1
            usual = usual + (said[:, number] - usual) / min(USUAL_START + images, USUAL_HORIZON)
            answers[number] = answer
        after = Context(averages, weights[None], usual, images)
        return torch.from_numpy(answers).to(logits), after, weighed

    def _tempered(self, usual: Numbers) -> Numbers:
        """The usual answers, no more uneven than UNEVEN."""
        uneven = self._classes * np.square(usual).sum(axis=1, keepdims=True) - 1
        part = np.sqrt(UNEVEN / np.maximum(uneven, UNEVEN))
        even = 1 / self._classes
        tempered: Numbers = even + part * (usual - even)
        return tempered

    def commit(self, prediction: Prediction, *, learned: bool) -> None:
        self._context = prediction.pending.after["context"]

    def state(self) -> State:
        return {
            "context": {
                **{
                    name: torch.from_numpy(getattr(self._context, name).copy())
                    for name in ("averages", "weights", "usual")
                },
                "context_images": self._context.images,
            }
        }

    def restore(self, state: State) -> None:
        given, now = state["context"], self._context
        self._context = Context(
            distributions(given["averages"], now.averages),
            distributions(given["weights"], now.weights),
            distributions(given["usual"], now.usual),
            int(bounded(given["context_images"])),
        )


def _softmax(scores: Numbers) -> Numbers:
    with np.errstate(invalid="ignore"):  # of infinite ones
        exponentials: Numbers = np.exp(scores - scores.max(axis=1, keepdims=True))
    sums: Numbers = exponentials.sum(axis=1, keepdims=True)
    return exponentials / sums
