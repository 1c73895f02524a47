"""What a replay sends, how, and where to. Refuses at once what cannot be carried out."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from service.client import DEFAULT_TIMEOUT, DEFAULT_URL, check_url
from ttc_core.corruptions import CORRUPTIONS, check
from ttc_core.datasets import check_corruption
from ttc_core.order import check_order

Mode = Literal["lockstep", "closed", "open", "discrete", "continuous", "amortised"]
UNDER_TIME = ("discrete", "continuous", "amortised")
"""The modes that measure utility under time: see `service.replay.utility`."""
ONE_BY_ONE = ("open", *UNDER_TIME)
"""The modes that stand for cameras, which send an image as they have it; the others send batches
unless they are told otherwise, as `ttc evaluate` runs them."""
Arrivals = Literal["poisson", "even"]


@dataclass(frozen=True)
class ReplayPlan:
    """What is sent, how, and where to.

    Attributes:
        data: a DATA spec (see `ttc_core.datasets.SPECS`).
        url: of the service.
        corruptions: one after another; "clean" is one too.
        severity: 1 to 5.
        batch_size: images per request, in every mode.
        limit: the first so many images of each corruption, or the length of an order that deals
            images class by class; None: all.
        seed: of corruptions, order and Poisson arrivals.
        mode: lockstep, closed or open; or what utility is measured by: discrete, continuous or
            amortised.
        concurrency: workers in closed mode.
        rate: images per second in open mode, so rate / batch_size requests per second.
        arrivals: of requests in open mode: Poisson, or evenly spaced.
        period: seconds between requests in discrete mode, and those that an answer may take without
            loss in continuous mode; None: what SOURCE takes, which is measured.
        budget: seconds of adaptation in amortised mode, after which nothing is learned any more.
        stream: the name of the service's stream; None: its default one.
        order: see `ttc_core.order.ORDERS`.
        reset_between: put the stream back to the source before each corruption.
        token: what the server's --token says, if it has one.
        admin_token: what its --admin-token says, for resets.
        timeout: seconds to wait for an answer, and for the server to come to rest.
        most_in_flight: open requests without an answer yet; beyond them, one is dropped.

    Raises:
        ValueError: a value is out of range, or does not go with the mode.
    """

    data: str
    url: str = DEFAULT_URL
    corruptions: tuple[str, ...] = ("clean",)
    severity: int = 5
    batch_size: int = 100
    limit: int | None = None
    seed: int = 0
    mode: Mode = "lockstep"
    concurrency: int = 1
    rate: float | None = None
    arrivals: Arrivals = "poisson"
    period: float | None = None
    budget: float | None = None
    stream: str | None = None
    order: str = "file"
    reset_between: bool = False
    token: str | None = field(default=None, repr=False)
    admin_token: str | None = field(default=None, repr=False)
    timeout: float = DEFAULT_TIMEOUT
    most_in_flight: int = 500

    def __post_init__(self) -> None:
        check_url(self.url)
        if not self.corruptions:
            raise ValueError("corruptions must name at least one; got none.")
        for corruption in self.corruptions:
            check_corruption(corruption)
        check(CORRUPTIONS[0], self.severity, seed=self.seed)
        check_order(self.order)
        if self.mode not in get_args(Mode):
            *others, last = get_args(Mode)
            raise ValueError(f"mode must be {', '.join(others)} or {last}; got {self.mode!r}.")
        if self.arrivals not in get_args(Arrivals):
            raise ValueError(f"arrivals must be poisson or even; got {self.arrivals!r}.")
        if (self.rate is None) == (self.mode == "open"):
            raise ValueError(
                "rate (images per second) is needed in open mode, and used in no other; "
                f"got mode {self.mode} and rate {self.rate}."
            )
        if self.rate is not None and not 0 < self.rate < math.inf:
            raise ValueError(f"rate must be above 0 images per second; got {self.rate}.")
        if self.period is not None and self.mode not in ("discrete", "continuous"):
            raise ValueError(
                f"period is used in discrete and continuous mode only; got {self.period} "
                f"with {self.mode}."
            )
        if self.period is not None and not 0 < self.period < math.inf:
            raise ValueError(f"period must be above 0 seconds; got {self.period}.")
        if (self.budget is None) == (self.mode == "amortised"):
            raise ValueError(
                "budget (seconds of adaptation) is needed in amortised mode, and used in no other; "
                f"got mode {self.mode} and budget {self.budget}."
            )
        if self.budget is not None and not 0 <= self.budget < math.inf:
            raise ValueError(f"budget must be at least 0 seconds; got {self.budget}.")
        if self.concurrency != 1 and self.mode != "closed":
            raise ValueError(
                f"concurrency is used in closed mode only; got {self.concurrency} with {self.mode}."
            )
        for name in ("batch_size", "concurrency", "most_in_flight", "limit"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}.")
