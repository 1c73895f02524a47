"""What is served by the protocol: a model of tensors, and what is counted of it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from numpy.typing import NDArray

from service.intake import Submission
from service.v2.reading import InferenceRequest
from service.v2.signature import VERSION, Signature
from service.v2.writing import Best

STAGES = {"queue": "queue", "decode": "compute_input", "forward": "compute_infer"}
"""How the protocol calls the stages that a request spends its time in; to write is the last."""


@dataclass(frozen=True)
class Inference:
    """What a model answers.

    Attributes:
        outputs: by name, all that were asked for; the first side is the batch's.
        seconds: spent in each of STAGES.
        passes: of the model, for this request and no earlier one.
        best: by an output's name, what tells the best classes of row n, so many, best first, of
            equals too; without it they are by their values, and equals by their index.
    """

    outputs: Mapping[str, NDArray[Any]]
    seconds: Mapping[str, float] = field(default_factory=dict)
    passes: int = 1
    best: Mapping[str, Best] = field(default_factory=dict)


class Model(Protocol):
    """A model as the routes need it."""

    statistics: "Statistics"

    @property
    def signature(self) -> Signature: ...

    @property
    def is_ready(self) -> bool: ...

    async def infer(self, request: InferenceRequest, submission: Submission) -> Inference:
        """Answer a request that `submission` received; what it holds may go through it.

        Raises:
            Refused: it cannot be answered. ClientGone: nobody waits any more.
        """
        ...


class Statistics:
    """How many requests a model has answered by the protocol, and what they spent their time in."""

    def __init__(self) -> None:
        self._last = self._items = self._passes = 0
        stages = ("success", "fail", *STAGES.values(), "compute_output")
        self._counts = dict.fromkeys(stages, 0)
        self._nanoseconds = dict.fromkeys(stages, 0)

    def answered(self, inference: Inference, batch: int, seconds: float, writing: float) -> None:
        """Count a request answered in so many seconds, the last of them for writing."""
        self._last = int(1000 * time.time())
        self._items += batch
        self._passes += inference.passes
        self._count("success", seconds)
        for stage, name in STAGES.items():
            self._count(name, inference.seconds.get(stage, 0.0))
        self._count("compute_output", writing)

    def failed(self, seconds: float) -> None:
        """Count a request that was not."""
        self._count("fail", seconds)

    def _count(self, stage: str, seconds: float) -> None:
        self._counts[stage] += 1
        self._nanoseconds[stage] += int(1e9 * seconds)

    def told(self, name: str) -> dict[str, Any]:
        """As the statistics extension has them."""
        return {
            "name": name,
            "version": VERSION,
            "last_inference": self._last,
            "inference_count": self._items,
            "execution_count": self._passes,
            "inference_stats": {
                stage: {"count": count, "ns": self._nanoseconds[stage]}
                for stage, count in self._counts.items()
            },
            "batch_stats": [],
        }
