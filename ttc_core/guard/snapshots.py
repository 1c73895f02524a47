"""What a stream had adapted while things were good, to go back to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ttc_core.guard.watch import SECTION, within
from ttc_core.methods.contract import State
from ttc_core.methods.parts import bounded
from ttc_core.packing import pack_section, unpack_section

# So many are kept; the oldest goes first. Two of a ResNet-50 are 0.2 MB.
MOST = 2
# What an optimizer has gathered leads on from where it was, not from there; and a prior learned
# harm's answers since.
_LEFT_OUT = frozenset({"optimizer", "gradients", "context"})
_PENDING = ("pending_batches", "pending_images", "pending_weight", "pending_largest")
# Known of the stream, whatever was adapted: they stay as they are.
_KEPT = frozenset({"conditions", "envelope", "scene", "second_view"})


@dataclass(frozen=True)
class Snapshot:
    """A stream's state, its tensors packed.

    Attributes:
        version: optimizer steps taken then.
        images: how many the stream had had.
    """

    version: int
    images: int
    packed: State

    @classmethod
    def of(cls, state: State, source: State, *, version: int, images: int) -> "Snapshot":
        """One of a state of a method, and the state it has at the source."""
        return cls(
            version,
            images,
            {
                name: pack_section(section, source.get(name, {}))
                for name, section in state.items()
                if name not in _LEFT_OUT | _KEPT
            },
        )

    def state(self, source: State, present: State) -> State:
        """What to restore, of a stream that is at `present` and whose source is `source`.

        Raises:
            ValueError: it is of another network.
        """
        before = {
            name: unpack_section(section, source.get(name, {}))
            for name, section in self.packed.items()
        }
        if "counters" in before:  # of gradients that are left out
            before["counters"] = {**before["counters"], **dict.fromkeys(_PENDING, 0)}
        known: Mapping[str, Mapping[str, object]] = {
            name: section for name, section in present.items() if name in _KEPT
        }
        return {**source, **before, **known}

    def checked(self, source: State) -> "Snapshot":
        """Itself, if it can be restored.

        Raises:
            ValueError: it is of another network, or of numbers that are none.
        """
        for name, section in self.packed.items():
            if not isinstance(section, Mapping):
                raise ValueError("a snapshot is none")
            unpack_section(section, source.get(name, {}))
        return self


def state_of(snapshots: Sequence[Snapshot]) -> State:
    """What a state holds of them: a section each, and one for each of theirs."""
    found: dict[str, Mapping[str, Any]] = {}
    for number, snapshot in enumerate(snapshots):
        name = f"snapshot{number}"
        found[name] = {"version": snapshot.version, "images": snapshot.images}
        found |= {f"{name}.{each}": packed for each, packed in snapshot.packed.items()}
    return found


def snapshots_of(own: State, count: int, source: State) -> tuple[Snapshot, ...]:
    """Those that a state holds, so many.

    Raises:
        KeyError, ValueError: one is none of this network's.
    """
    return tuple(_snapshot(own, number, source) for number in range(count))


def _snapshot(own: Mapping[str, Any], number: int, source: State) -> Snapshot:
    """The one that a state holds under a number.

    Raises:
        KeyError, ValueError: it is none of this network's.
    """
    name = f"snapshot{number}"
    about = own[name]
    return Snapshot(
        int(bounded(about["version"])), int(bounded(about["images"])), within(name, own)
    ).checked(source)


def saved_snapshots(state: State) -> dict[int, int]:
    """The versions that a stream's saved state, or its numbers alone, has snapshots of, the oldest
    first, and after how many images each was.

    Raises:
        KeyError, ValueError: a number is missing, or cannot be.
    """
    count = int(bounded(state[SECTION]["snapshots"], most=MOST)) if SECTION in state else 0
    about = [state[f"{SECTION}.snapshot{number}"] for number in range(count)]
    return {int(bounded(each["version"])): int(bounded(each["images"])) for each in about}
