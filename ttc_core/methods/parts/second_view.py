"""Whether an image's mirror image means the same: seen without labels, on the first images.

The two views' answers p and q differ by the Jensen-Shannon divergence J, at most ln 2. A bet
against "J is at most TOLERATED on average" gains where it is more; by Ville's inequality it reaches
WEALTH with a probability of at most 1 / WEALTH where that holds, however long one watches.
Source: Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting", JRSS B
2024; METHOD §1.9 has the study.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ttc_core.methods.contract import Prediction, State
from ttc_core.methods.parts import bounded

# Nats: of networks for which mirroring is right the mean was at most 0.288, else at least 0.435.
TOLERATED = 0.30
STAKE = 1.5
WEALTH = 100.0


@dataclass(frozen=True)
class Bet:
    """What the bet has come to.

    Attributes:
        gain: ln of the wealth.
        lost: the mirror image means something else; the bet is over.
    """

    gain: float = 0.0
    lost: bool = False


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
        for each in divergence_of_views(logits, others).tolist():
            gain = bet.gain + math.log1p(STAKE * (each - TOLERATED))
            bet = replace(bet, gain=gain, lost=bet.lost or gain >= math.log(WEALTH))
        return bet

    def commit(self, prediction: Prediction, *, learned: bool) -> None:
        if not self.bet.lost:  # batches answered before it was lost may be committed after
            self.bet = prediction.pending.after["second_view"]

    def reset(self) -> None:
        self.bet = Bet()

    def state(self) -> State:
        return {"second_view": {"gain": self.bet.gain, "lost": int(self.bet.lost)}}

    def restore(self, state: State) -> None:
        given = state["second_view"]
        self.bet = Bet(
            bounded(given["gain"], least=-math.inf), bool(bounded(given["lost"], most=1))
        )


def divergence_of_views(logits: Tensor, others: Tensor) -> Tensor:
    """(N,) the Jensen-Shannon divergence of the answers (N, K) to two views, in [0, ln 2] nats."""
    p, q = (each.detach().double().softmax(dim=1) for each in (logits, others))
    of_mean, of_p, of_q = (torch.special.entr(each).sum(dim=1) for each in ((p + q) / 2, p, q))
    divergence: Tensor = of_mean - (of_p + of_q) / 2
    return divergence
