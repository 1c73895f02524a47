"""What the images just before say about the next one's class: a prior that has to earn its weight.

Sources: the experts' mixture is Herbster & Warmuth's fixed share ("Tracking the best expert",
1998) with the experts' likelihoods for losses; METHOD §1.9 has the study it was chosen in.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ttc_core.methods.contract import Prediction, State
from ttc_core.methods.parts import Numbers, distributions

# Images over which an expert averages the classes, and temperatures of the network's answer.
HORIZONS = (2.0, 16.0)
TEMPERATURES = (1.0, 3.0)
# No class is ever thought impossible.
FLOOR = 0.01
# What the expert that expects nothing weighs at the start, and the share of all weight that is
# dealt out anew after each image.
UNIFORM_WEIGHT = 0.8
SHARE = 0.02
# An image moves the experts' weights by this factor at most: e⁵.
MOST_EVIDENCE = 5.0


@dataclass(frozen=True)
class Context:
    """What the prior knows; never written in place.

    Attributes:
        averages: (H, K) the answers of late, over each horizon; rows sum to 1.
        weights: (1 + H·T,) of the experts, the uniform one first; sum to 1.
    """

    averages: Numbers
    weights: Numbers


class TemporalPrior:
    """Mixes the network's answer with what the images before lead to expect.

    Each expert takes an average of the latest answers for the prior of the next and weighs with it
    the network's answer, softened by a temperature; one expects nothing and takes the answer as it
    is. What an expert's prior gives the answer is its evidence, and by that the experts share the
    weight: where the classes come at random the prior has no say.
    """

    def __init__(self, classes: int) -> None:
        self._classes = classes
        experts = len(HORIZONS) * len(TEMPERATURES)
        self._first = np.full(1 + experts, (1 - UNIFORM_WEIGHT) / experts)
        self._first[0] = UNIFORM_WEIGHT
        self._decays = np.array([1 / horizon for horizon in HORIZONS])[:, None]
        self.reset()

    def reset(self) -> None:
        uniform = np.full((len(HORIZONS), self._classes), 1 / self._classes)
        self._context = Context(uniform, self._first)

    def answers(
        self, logits: Tensor, context: Sequence[bool] | None = None
    ) -> tuple[Tensor, Context]:
        """Answer images in their order.

        Args:
            logits: (N, K), the network's.
            context: (N,) off, an image's answer is the network's, and the prior does not move.

        Returns:
            (N, K) probabilities, and the context after them.
        """
        averages, weights = self._context.averages, self._context.weights
        scores = logits.detach().double().cpu().numpy()
        # (T, N, K)
        said = np.stack([_softmax(scores / temperature) for temperature in TEMPERATURES])
        answers = np.empty_like(scores)
        for number in range(len(scores)):
            if not np.isfinite(scores[number]).all():
                answers[number] = np.nan  # it says nothing, and nothing follows from it
                continue
            if context is not None and not context[number]:
                answers[number] = said[0, number]
                continue
            prior = (1 - FLOOR) * averages + FLOOR / self._classes
            joint = said[:, number, None, :] * prior  # (T, H, K)
            evidence = joint.sum(axis=2)
            posteriors = (joint / evidence[..., None]).reshape(-1, self._classes)
            factors = np.clip(
                self._classes * evidence.ravel(), np.exp(-MOST_EVIDENCE), np.exp(MOST_EVIDENCE)
            )
            weights = weights * np.concatenate(([1.0], factors))
            weights /= weights.sum()
            answer = weights[0] * said[0, number] + weights[1:] @ posteriors
            weights = (1 - SHARE) * weights + SHARE * self._first
            averages = averages + self._decays * (answer - averages)
            answers[number] = answer
        return torch.from_numpy(answers).to(logits), Context(averages, weights)

    def commit(self, prediction: Prediction, *, learned: bool) -> None:
        self._context = prediction.pending.after["context"]

    def state(self) -> State:
        return {
            "context": {
                "averages": torch.from_numpy(self._context.averages.copy()),
                "weights": torch.from_numpy(self._context.weights.copy()),
            }
        }

    def restore(self, state: State) -> None:
        given, now = state["context"], self._context
        self._context = Context(
            distributions(given["averages"], now.averages),
            distributions(given["weights"], now.weights),
        )


def _softmax(scores: Numbers) -> Numbers:
    with np.errstate(invalid="ignore"):  # of infinite ones
        exponentials: Numbers = np.exp(scores - scores.max(axis=1, keepdims=True))
    sums: Numbers = exponentials.sum(axis=1, keepdims=True)
    return exponentials / sums
