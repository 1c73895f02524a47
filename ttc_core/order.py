"""In which order a stream's images come: as filed, mixed, sorted by class, or in class runs."""

import numpy as np
from numpy.typing import NDArray

# Images, on average: above it, batches are far from a fair sample of the classes.
LONG_RUN = 2.0
ORDERS = "file, iid, sorted or dirichlet:D with D > 0"


def check_order(order: str) -> None:
    """Raise ValueError unless `order` is one of ORDERS."""
    if order in ("file", "iid", "sorted"):
        return
    name, _, concentration = order.partition(":")
    try:
        known = name == "dirichlet" and 0 < float(concentration) < float("inf")
    except ValueError:
        known = False
    if not known:
        raise ValueError(f"The order must be {ORDERS}; got {order!r}.")


def order_indices(labels: NDArray[np.int64], order: str, *, seed: int = 0) -> NDArray[np.int64]:
    """Return the positions (N,) of a stream's images in the order asked for.

    Args:
        labels: (N,) class indices, in file order.
        order: `file`; `iid`, permuted by the seed; `sorted` by class, file order within; or
            `dirichlet:D`: as many slots as classes, each class's permuted images cut over the
            slots by one Dirichlet(D, …, D) draw, slots one after another, each shuffled.

    Raises:
        ValueError: another order.
    """
    check_order(order)
    random = np.random.default_rng(seed)
    if order == "file":
        return np.arange(len(labels))
    if order == "iid":
        return random.permutation(len(labels))
    if order == "sorted":
        return np.argsort(labels, kind="stable")
    classes = np.unique(labels)
    concentration = float(order.partition(":")[2])
    slots: list[list[NDArray[np.int64]]] = [[] for _ in classes]
    for label in classes:
        members = random.permutation(np.flatnonzero(labels == label))
        shares = random.dirichlet([concentration] * len(classes))
        cuts = np.round(np.cumsum(shares)[:-1] * len(members)).astype(int)
        for slot, part in zip(slots, np.split(members, cuts), strict=True):
            slot.append(part)
    return np.concatenate([random.permutation(np.concatenate(slot)) for slot in slots])


def run_lengths(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many images of one class follow one another, run by run."""
    if len(labels) == 0:
        return np.empty(0, np.int64)
    ends = np.flatnonzero(np.diff(labels)) + 1
    return np.diff(ends, prepend=0, append=len(labels))


def note_on_runs(labels: NDArray[np.int64], order: str) -> str | None:
    """Say how long runs are, where they are long or were asked for; None elsewhere."""
    lengths = run_lengths(labels)
    if len(lengths) == 0 or (lengths.mean() <= LONG_RUN and not order.startswith("dirichlet:")):
        return None
    return (
        f"runs of one class are {lengths.mean():.1f} images long on average, "
        f"{np.median(lengths):.0f} in the middle, {lengths.max()} at most"
        + ("; batch statistics suffer from them" if lengths.mean() > LONG_RUN else "")
    )
