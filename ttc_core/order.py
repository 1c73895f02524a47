"""In which order a stream's images come: as filed, mixed, in runs, or as a camera sends them."""

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ttc_core.errors import UserError

# Images, on average: above it, batches are far from a fair sample of the classes.
LONG_RUN = 2.0
ORDERS = (
    "file, iid, sorted, dirichlet:D with D > 0, runs:L with L >= 1, one:CLASS, camera-trap or "
    "limited:M with M >= 1"
)
# Of a camera trap: images in a burst, how often its two usual classes come together, and within
# how many images their shares hold.
BURST = (3, 10)
USUAL_SHARE = 0.71
HORIZON = 20

Labels = NDArray[np.int64]
Random = np.random.Generator


class OrderError(UserError):
    """The classes of the data do not allow an order; the text says which there are."""


def is_count(text: str) -> bool:
    """Whether that is a whole number from 1 on, in its one spelling: rows are told apart by it."""
    return re.fullmatch(r"[1-9][0-9]{0,8}", text) is not None


def check_order(order: str) -> None:
    """Raise ValueError unless `order` is one of ORDERS."""
    name, colon, value = order.partition(":")
    try:
        known = (
            order in ("file", "iid", "sorted", "camera-trap")
            or (name == "dirichlet" and 0 < float(value) < float("inf"))
            or (name in ("runs", "limited") and is_count(value))
            or (name == "one" and bool(colon) and bool(value.strip()))
        )
    except ValueError:
        known = False
    if not known:
        raise ValueError(f"The order must be {ORDERS}; got {order!r}.")


def deals(order: str) -> bool:
    """Whether images are dealt class by class, so that one may come again.

    The limit is then the length of the stream, and says nothing of which images it is made of.
    """
    return order.partition(":")[0] in _WANTED


def images_asked(order: str, limit: int | None) -> int | None:
    """How many of a data set's images, the first ones, an order makes its stream of; None: all."""
    return None if deals(order) else limit


def with_class_index(order: str, class_names: Sequence[str]) -> str:
    """`one:NAME` as `one:INDEX`; another order as it is.

    Raises:
        OrderError: there is no such class.
    """
    kind, _, given = order.partition(":")
    if kind != "one":
        return order
    given, names = given.strip(), list(class_names)
    alike = [rank for rank, name in enumerate(names) if name.casefold() == given.casefold()]
    if given in names or len(alike) == 1:
        return f"one:{names.index(given) if given in names else alike[0]}"
    if given.isascii() and given.isdigit() and len(given) < 10 and int(given) < len(names):
        return f"one:{int(given)}"
    listed = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
    raise OrderError(
        f"There is no class {given!r}; there are 0 to {len(names) - 1}, or by name {listed}."
    )


def order_indices(
    labels: Labels, order: str, *, limit: int | None = None, seed: int = 0
) -> NDArray[np.int64]:
    """Return the positions (N,) of a stream's images in the order asked for.

    Args:
        labels: (N,) class indices, in file order.
        order: `file`; `iid`, permuted by the seed; `sorted` by class, file order within; or
            `dirichlet:D`: as many slots as classes, each class's permuted images cut over the
            slots by one Dirichlet(D, …, D) draw, slots one after another, each shuffled. Others
            deal the images of each class, permuted, anew once all of them came: `runs:L` of one
            class, drawn without repeating the last; `one:INDEX`, that class only; `camera-trap`,
            bursts of BURST images of one class, never twice the same, two classes USUAL_SHARE of
            the images and the others alike; `limited:M`, M classes in the first half, all in the
            second, classes as frequent as in the data.
        limit: only so many images, the first ones; of an order that deals, so many in all.

    Raises:
        ValueError: another order.
        OrderError: one that these classes do not allow.
    """
    check_order(order)
    random = np.random.default_rng(seed)
    name, _, value = order.partition(":")
    if name in _WANTED:
        if len(labels) == 0:
            return np.empty(0, np.int64)
        return _dealt(_WANTED[name](labels, value, limit, random), labels, random)
    labels = labels[:limit]
    if name == "file":
        return np.arange(len(labels))
    if name == "iid":
        return random.permutation(len(labels))
    if name == "sorted":
        return np.argsort(labels, kind="stable")
    return _dirichlet(labels, float(value), random)


def _dirichlet(labels: Labels, concentration: float, random: Random) -> NDArray[np.int64]:
    classes = np.unique(labels)
    slots: list[list[NDArray[np.int64]]] = [[] for _ in classes]
    for label in classes:
        members = random.permutation(np.flatnonzero(labels == label))
        shares = random.dirichlet([concentration] * len(classes))
        cuts = np.round(np.cumsum(shares)[:-1] * len(members)).astype(int)
        for slot, part in zip(slots, np.split(members, cuts), strict=True):
            slot.append(part)
    return np.concatenate([random.permutation(np.concatenate(slot)) for slot in slots])


def _dealt(wanted: Labels, labels: Labels, random: Random) -> NDArray[np.int64]:
    """The positions of images of the classes wanted, each class's without repetition in a round."""
    positions = np.empty(len(wanted), np.int64)
    for label in np.unique(wanted):
        times, members = np.flatnonzero(wanted == label), np.flatnonzero(labels == label)
        rounds = -(-len(times) // len(members))
        deck = np.concatenate([random.permutation(members) for _ in range(rounds)])
        positions[times] = deck[: len(times)]
    return positions


# Which class is wanted at each place of a stream, given the labels of the data, what stands behind
# the colon, the limit and a source of random numbers.


def _runs(labels: Labels, value: str, limit: int | None, random: Random) -> Labels:
    length, each = limit or len(labels), int(value)
    classes = _several(labels, f"runs:{value}")
    count = -(-length // each)
    # Steps of 1 to K - 1 around the circle of classes: any but the last, all alike.
    steps = random.integers(1, len(classes), count)
    steps[0] = random.integers(len(classes))
    return np.repeat(classes[np.cumsum(steps) % len(classes)], min(each, length))[:length]


def _one(labels: Labels, value: str, limit: int | None, random: Random) -> Labels:
    label = int(value) if value.isascii() and value.isdigit() and len(value) < 10 else -1
    count = int((labels == label).sum())
    if count == 0:
        classes = np.unique(labels)
        raise OrderError(
            f"one:{value} has no images; the data has {len(classes)} classes, by index "
            f"{classes[0]} to {classes[-1]}."
        )
    return np.full(limit or count, label)


def _camera_trap(labels: Labels, value: str, limit: int | None, random: Random) -> Labels:
    classes, length = random.permutation(_several(labels, "camera-trap")), limit or len(labels)
    usual = np.arange(len(classes)) < 2
    share = USUAL_SHARE if len(classes) > 2 else 1.0
    shares = np.where(usual, share / 2, (1 - share) / max(1, len(classes) - 2))
    bursts: list[Labels] = []
    counts, done, last = np.zeros(len(classes)), 0, -1
    while done < length:
        # The farther behind its share, the likelier: one of the two kinds first, then a class.
        soon = done + HORIZON
        weights = np.maximum(shares * soon - counts, 1e-9) * (np.arange(len(classes)) != last)
        kinds = np.array([share, 1 - share]) * soon - [counts[usual].sum(), counts[~usual].sum()]
        kinds = np.maximum(kinds, 1e-9) * [weights[usual].any(), weights[~usual].any()]
        weights *= usual if random.random() < kinds[0] / kinds.sum() else ~usual
        last = int(random.choice(len(classes), p=weights / weights.sum()))
        size = min(int(random.integers(BURST[0], BURST[1] + 1)), length - done)
        bursts.append(np.full(size, classes[last]))
        counts[last] += size
        done += size
    return np.concatenate(bursts)


def _limited(labels: Labels, value: str, limit: int | None, random: Random) -> Labels:
    classes, length, few = np.unique(labels), limit or len(labels), int(value)
    if few > len(classes):
        raise OrderError(f"limited:{few} needs {few} classes; the data has {len(classes)}.")
    chosen = random.permutation(classes)[:few]
    first = np.resize(random.permutation(labels[np.isin(labels, chosen)]), length // 2)
    return np.concatenate([first, np.resize(random.permutation(labels), length - length // 2)])


def _several(labels: Labels, order: str) -> Labels:
    classes = np.unique(labels)
    if len(classes) < 2:
        raise OrderError(f"{order} needs images of two classes or more; the data has one class.")
    return classes


_WANTED: dict[str, Callable[[Labels, str, int | None, Random], Labels]] = {
    "runs": _runs,
    "one": _one,
    "camera-trap": _camera_trap,
    "limited": _limited,
}


def run_lengths(labels: Labels) -> NDArray[np.int64]:
    """Return how many images of one class follow one another, run by run."""
    if len(labels) == 0:
        return np.empty(0, np.int64)
    ends = np.flatnonzero(np.diff(labels)) + 1
    return np.diff(ends, prepend=0, append=len(labels))


def note_on_runs(labels: Labels, order: str) -> str | None:
    """Say how long runs are, where they are long or were asked for; None elsewhere."""
    lengths = run_lengths(labels)
    if len(lengths) == 0 or (lengths.mean() <= LONG_RUN and not order.startswith("dirichlet:")):
        return None
    return (
        f"runs of one class are {lengths.mean():.1f} images long on average, "
        f"{np.median(lengths):.0f} in the middle, {lengths.max()} at most"
        + (
            "; statistics of a batch suffer from them, those that follow a stream less"
            if lengths.mean() > LONG_RUN
            else ""
        )
    )
