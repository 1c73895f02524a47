"""A method that nobody watches, though somebody may have before and may again."""

from collections.abc import Mapping

from ttc_core.guard.snapshots import saved_snapshots
from ttc_core.guard.watch import SECTION, Watch
from ttc_core.guard.wrapper import Wrapper
from ttc_core.methods.contract import WATCHING, Method, State


class Unwatched(Wrapper):
    """Keeps what a stream's guard knew, as it is, for the guard that comes after.

    It is in the stream's state only: answers and learning are the method's own. A reset forgets it.
    """

    def __init__(self, inner: Method) -> None:
        super().__init__(inner)
        self._forget()

    def _forget(self) -> None:
        self._kept: State = {}
        self._doubted, self._snapshots = False, dict[int, int]()

    @property
    def doubted(self) -> bool:
        """Whether the source should answer, by what the guard had seen."""
        return self._doubted

    @property
    def kept_snapshots(self) -> Mapping[int, int]:
        """What a guard can go back to once there is one: versions, and after how many images."""
        return self._snapshots

    def reset(self) -> None:
        self._forget()
        self.inner.reset()

    def state(self) -> State:
        return {**self.inner.state(), **self._kept}

    def restore(self, state: State) -> None:
        """Go on from a state.

        Raises:
            KeyError, ValueError: what the guard saw is none; or what the method raises.
        """
        kept = {name: state[name] for name in state if name.partition(".")[0] in WATCHING}
        watch = Watch.restored(kept[SECTION]) if SECTION in kept else Watch()
        snapshots = saved_snapshots(kept)
        self.inner.restore({name: state[name] for name in state if name not in kept})
        self._kept, self._doubted, self._snapshots = kept, watch.by_source, snapshots
