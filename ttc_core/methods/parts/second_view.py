"""Whether an image's mirror image means the same: seen without labels, on the first images.

Two bets that it does. The answers p and q to both views differ by their Jensen-Shannon divergence,
at most ln 2: that is at most TOLERATED on average. And a network is about as sure of one as of the
other: the entropy of q less that of p, divided by ln K, is at most LESS_SURE on average. Each bet's
wealth grows where it is more. By Ville's inequality their mean reaches WEALTH with a probability of
at most 1 / WEALTH where both hold, however long one watches. From SUSPICIOUS on the mirror image is
left out of the answers, as long as wealth is as much.
Source: Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting", JRSS B
2024; METHOD §1.9 has the study of the first.
"""

import math
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from ttc_core.methods.contract import Prediction, State
from ttc_core.methods.parts import bounded
from ttc_core.objective import entropy

# Nats: of networks for which mirroring is right the mean was at most 0.288, else at least 0.435.
TOLERATED = 0.30
STAKE = 1.5
# Of ln K: where mirroring is right at most 0.008 over a thousand images, of digits 0.15 to 0.37.
LESS_SURE = 0.08
UNSURE_STAKE = 0.8
SUSPICIOUS = 2.0
WEALTH = 100.0


@dataclass(frozen=True)
class Bet:
    """What both bets have come to.

    Attributes:
        unlike: ln of the wealth of the bet on the answers' divergence.
        unsure: ln of the wealth of the bet on their entropies.
        lost: the mirror image means something else; the bets are over.
    """

    unlike: float = 0.0
    unsure: float = 0.0
    lost: bool = False

    @property
    def wealth(self) -> float:
        """The mean of both; 1 at the start."""
        return (math.exp(self.unlike) + math.exp(self.unsure)) / 2

    @property
    def suspicious(self) -> bool:
        """Whether answers go without the mirror image, for now or for good."""
        return self.lost or self.wealth >= SUSPICIOUS

    def after(self, divergence: float, less_sure: float) -> "Bet":
        """What it is after an image whose views differ by so much."""
        bet = Bet(
            self.unlike + math.log1p(STAKE * (divergence - TOLERATED)),
            self.unsure + math.log1p(UNSURE_STAKE * (less_sure - LESS_SURE)),
        )
        return replace(bet, lost=bet.wealth >= WEALTH)


class SecondView:
    """Whether the second view takes part.

    Args:
        mode: "auto" watches; "on" and "off" force it.
    """

    bet: Bet

    def __init__(self, mode: str) -> None:
        self._mode = mode
        self.reset()

    @property
    def used(self) -> bool:
        """Whether images are looked at twice."""
        return self._mode == "on" or (self._mode == "auto" and not self.bet.lost)

    def after(self, logits: Tensor, others: Tensor) -> Bet:
        """What the bet will be after the answers (N, K) to the two views of a batch."""
        bet = self.bet
        if self._mode != "auto" or bet.lost:
            return bet
        differences = divergence_of_views(logits, others), lost_certainty(logits, others)
        for each in torch.stack(differences, dim=1).tolist():
            if not bet.lost:
                bet = bet.after(*each)
        return bet

    def commit(self, prediction: Prediction, *, learned: bool) -> None:
        if not self.bet.lost:  # batches answered before it was lost may be committed after
            self.bet = prediction.pending.after["second_view"]

    def reset(self) -> None:
        self.bet = Bet()

    def state(self) -> State:
        return {"second_view": {**asdict(self.bet), "lost": int(self.bet.lost)}}

    def restore(self, state: State) -> None:
        given = state["second_view"]
        most = math.log(4 * WEALTH)  # more than the last image before it is lost can make of it
        self.bet = Bet(
            unlike=bounded(given["unlike"], least=-math.inf, most=most),
            unsure=bounded(given["unsure"], least=-math.inf, most=most),
            lost=bool(bounded(given["lost"], most=1)),
        )


def divergence_of_views(logits: Tensor, others: Tensor) -> Tensor:
    """(N,) the Jensen-Shannon divergence of the answers (N, K) to two views, in [0, ln 2] nats."""
    p, q = (each.detach().double().softmax(dim=1) for each in (logits, others))
    of_mean, of_p, of_q = (torch.special.entr(each).sum(dim=1) for each in ((p + q) / 2, p, q))
    divergence: Tensor = of_mean - (of_p + of_q) / 2
    return divergence


def lost_certainty(logits: Tensor, others: Tensor) -> Tensor:
    """(N,) how much less sure the other view's answers (N, K) are, by ln K: in [-1, 1]."""
    of_both = (entropy(each.detach().double()) for each in (others, logits))
    certain: Tensor = torch.sub(*of_both) / math.log(logits.shape[1])
    return certain
