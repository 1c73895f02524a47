"""What methods are composed of: each part follows a stream by itself, and keeps its own state."""

from typing import Protocol

from ttc_core.methods.contract import Prediction, State


class Part(Protocol):
    """A part of a method: statistics, learner, memory, ….

    What it contributes to a prediction is between it and its method; what follows the stream moves
    in `commit`, which is handed all that was answered.
    """

    def commit(self, prediction: Prediction, *, learned: bool) -> None:
        """Take note of a batch that was answered, and learned from or not."""

    def reset(self) -> None:
        """Back to the source."""

    def state(self) -> State:
        """What has moved, as a copy: one section or more, of names that no other part has."""

    def restore(self, state: State) -> None:
        """Take up the part's own sections of a state.

        Raises:
            KeyError, ValueError: they are missing, or of another network.
        """
