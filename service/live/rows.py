"""The rows of streams: which have changed, which are shown, and what trouble each is in.

A row is made and encoded when its stream has changed, and kept; a thousand quiet cameras cost a
comparison each. Knows nothing of HTTP.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from service.live.schemas import LiveEstimate, LiveRow
from service.schemas import EstimateStatus, StreamAct, StreamTruth
from ttc_core.guard.estimate import Estimate, Estimates
from ttc_core.methods.contract import HELD, ROLLED_BACK

# Streams that are shown at once.
MOST_ROWS = 1000
# A camera fails now whose last so many frames were all faulty.
FAILING_FRAMES = 5

Trouble = Literal[0, 1, 2, 3]


class Seen(NamedTuple):
    """What is shown of a stream, as it was at one moment; as in `StreamRecord`, else as named.

    Attributes:
        last_image: when its last request was answered; acts: the last of them is shown.
    """

    in_memory: bool
    mode: str | None = None
    images: int | None = None
    version: int | None = None
    drift: float | None = None
    doubted_since: float | None = None
    held_since: float | None = None
    silent_since: float | None = None
    last_image: float | None = None
    suspect: str | None = None
    suspect_since: float | None = None
    suspect_in_a_row: int = 0
    suspects: Mapping[str, int] = {}
    estimates: Estimates | None = None
    truth: StreamTruth | None = None
    acts: tuple[StreamAct, ...] = ()


class _Row:
    """A stream's row: `encoded` once it is to be sent."""

    __slots__ = ("encoded", "name", "seen", "trouble", "why")

    def __init__(self, name: str, seen: Seen) -> None:
        self.name, self.seen = name, seen
        self.trouble, self.why = trouble_of(seen)
        self.encoded: bytes | None = None

    def encode(self) -> bytes:
        if self.encoded is None:
            row = _row(self.name, self.seen, self.trouble, self.why)
            self.encoded = row.model_dump_json().encode()
        return self.encoded


class Change(NamedTuple):
    """What a look found: encoded rows that are new or others, and the names shown no more."""

    rows: list[bytes]
    gone: list[str]


class Rows:
    """The rows of all streams that are looked at, and those of them that are shown.

    Attributes:
        left_out: how many are not, being more than MOST_ROWS.
    """

    def __init__(self) -> None:
        self._known: dict[str, _Row] = {}
        self._shown: dict[str, _Row] = {}
        self.left_out = 0

    def look(self, streams: Mapping[str, Seen], *, choose: bool = True) -> Change:
        """Take note of how all streams are now.

        Args:
            choose: off: of more than MOST_ROWS those shown stay, as far as they are there.
        """
        known = self._known
        changed = {}
        for name, seen in streams.items():
            row = known.get(name)
            if row is None or row.seen != seen:
                changed[name] = known[name] = _Row(name, seen)
        if len(known) > len(streams):
            for name in known.keys() - streams.keys():
                del known[name]
        before = self._shown
        self._shown = shown = self._chosen(choose)
        self.left_out = len(known) - len(shown)
        fresh = [
            row.encode() for name, row in shown.items() if name in changed or name not in before
        ]
        return Change(fresh, [name for name in before if name not in shown])

    def _chosen(self, choose: bool) -> dict[str, _Row]:
        known = self._known
        if len(known) <= MOST_ROWS:
            return known.copy()
        stay = [name for name in self._shown if name in known]
        if not choose and len(stay) == MOST_ROWS:
            return {name: known[name] for name in stay}
        ordered = sorted(
            known.values(), key=lambda row: (-row.trouble, -(row.seen.last_image or 0))
        )
        return {row.name: row for row in ordered[:MOST_ROWS]}

    def all(self) -> list[bytes]:
        """All rows that are shown, encoded, those of most trouble first."""
        ordered = sorted(self._shown.values(), key=lambda row: (-row.trouble, row.name))
        return [row.encode() for row in ordered]


def trouble_of(seen: Seen) -> tuple[Trouble, str | None]:
    """How much trouble a stream is in, and the worst of it in a sentence."""
    if seen.mode == HELD:
        suspected = bool(seen.acts) and seen.acts[-1].reason == "suspicion"
        what = "is suspected to do harm" if suspected else "was seen to do harm"
        return 3, f"The source answers, since adapting {what}."
    if seen.suspect is not None and seen.suspect_in_a_row >= FAILING_FRAMES:
        return 3, f"Its last {seen.suspect_in_a_row:,} frames are faulty, now {seen.suspect}."
    if seen.doubted_since is not None:
        return 2, "Adapting is seen or suspected to do harm; the guard only observes."
    if seen.silent_since is not None:
        return 2, "It has sent nothing for much longer than is its habit."
    if seen.suspect is not None:
        return 2, f"It sent faulty frames of late, the last {seen.suspect}."
    if seen.mode == ROLLED_BACK:
        return 1, "It was brought back to a good state of late."
    if seen.estimates is not None and seen.estimates.difference.high < 0:
        return 1, "Without labels, adapting is estimated to be below the source."
    return 0, None


def _row(name: str, seen: Seen, trouble: Trouble, why: str | None) -> LiveRow:
    return LiveRow(
        name=name,
        in_memory=seen.in_memory,
        last_image=seen.last_image,
        images=seen.images,
        version=seen.version,
        drift=seen.drift and round(seen.drift, 6),
        mode=seen.mode,
        doubted_since=seen.doubted_since,
        held_since=seen.held_since,
        silent_since=seen.silent_since,
        suspect=seen.suspect,
        suspect_since=seen.suspect_since,
        suspects=dict(seen.suspects),
        estimate=seen.estimates and _estimate(seen.estimates),
        truth=seen.truth,
        guard=seen.acts[-1] if seen.acts else None,
        trouble=trouble,
        why=why,
    )


def _estimate(found: Estimates) -> LiveEstimate:
    def shown(each: Estimate) -> EstimateStatus:
        return EstimateStatus(
            accuracy=round(each.accuracy, 4), low=round(each.low, 4), high=round(each.high, 4)
        )

    return LiveEstimate(
        adapted=shown(found.adapted), source=shown(found.source), gain=shown(found.difference)
    )
