"""A method that nobody watches, though somebody may have before and may again."""

from ttc_core.guard.wrapper import Wrapper
from ttc_core.methods.contract import WATCHING, Method, State


class Unwatched(Wrapper):
    """Keeps what a stream's guard knew, as it is, for the guard that comes after.

    It is in the stream's state only: answers and learning are the method's own. A reset forgets it.
    """

    def __init__(self, inner: Method) -> None:
        super().__init__(inner)
        self._kept: State = {}

    @property
    def doubted(self) -> bool:
        """Whether the source should answer, by what the guard had seen."""
        known = self._kept.get("guard", {})
        return bool(known.get("held") or known.get("suspected"))

    def reset(self) -> None:
        self._kept = {}
        self.inner.reset()

    def state(self) -> State:
        return {**self.inner.state(), **self._kept}

    def restore(self, state: State) -> None:
        kept = {name: state[name] for name in state if name.partition(".")[0] in WATCHING}
        self.inner.restore({name: state[name] for name in state if name not in kept})
        self._kept = kept
