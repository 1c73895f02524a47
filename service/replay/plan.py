"""What a replay sends, how, and where to. Refuses at once what cannot be carried out."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from service.client import DEFAULT_TIMEOUT, DEFAULT_URL, check_url
from ttc_core.corruptions import CORRUPTIONS, check
from ttc_core.datasets import check_corruption
from ttc_core.order import check_order

Mode = Literal["lockstep", "closed", "open"]
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
        mode: lockstep, closed or open.
        concurrency: workers in closed mode.
        rate: images per second in open mode, so rate / batch_size requests per second.
        arrivals: of requests in open mode: Poisson, or evenly spaced.
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
            raise ValueError(f"mode must be lockstep, closed or open; got {self.mode!r}.")
        if self.arrivals not in get_args(Arrivals):
            raise ValueError(f"arrivals must be poisson or even; got {self.arrivals!r}.")
        if (self.rate is None) == (self.mode == "open"):
            raise ValueError(
                "rate (images per second) is needed in open mode, and used in no other; "
                f"got mode {self.mode} and rate {self.rate}."
            )
        if self.rate is not None and not 0 < self.rate < float("inf"):
            raise ValueError(f"rate must be above 0 images per second; got {self.rate}.")
        if self.concurrency != 1 and self.mode != "closed":
            raise ValueError(
                f"concurrency is used in closed mode only; got {self.concurrency} with {self.mode}."
            )
        for name in ("batch_size", "concurrency", "most_in_flight", "limit"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}.")
