"""What the protocol tells of a model: its tensors, as metadata and as Triton's configuration."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from service.v2.datatypes import BYTES

Shape = tuple[int, ...]
Scalar = str | int | float | bool

VERSION = "1"
"""The one version that a model has."""


@dataclass(frozen=True)
class Output:
    """A tensor that a model answers with.

    Attributes:
        shape: -1 for a side of any length.
        labels: what the places of its last side are called, if they are classes.
        parameters: what its metadata says besides.
    """

    name: str
    datatype: str
    shape: Shape
    labels: Sequence[str] = ()
    parameters: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True)
class Input:
    """A tensor that a model takes.

    Attributes:
        datatype, shape: as its metadata has them; -1 for a side of any length.
        also: further shapes that are taken, by datatype.
        options: parameters that the model reads, of this input or of the request.
        format: how Triton's configuration calls the order of an image's sides.
        raw: the datatype of a request that is nothing but this input's bytes; None: its own.
        parameters: what its metadata says besides.
    """

    name: str
    datatype: str
    shape: Shape
    also: Mapping[str, Sequence[Shape]] = field(default_factory=dict)
    options: Sequence[str] = ()
    format: str = "FORMAT_NONE"
    raw: str | None = None
    parameters: Mapping[str, Scalar] = field(default_factory=dict)

    @property
    def forms(self) -> Mapping[str, Sequence[Shape]]:
        """All shapes that are taken, by datatype."""
        own = (self.shape, *self.also.get(self.datatype, ()))
        return {**self.also, self.datatype: own}


@dataclass(frozen=True)
class Signature:
    """A model as its clients see it.

    Attributes:
        inputs: all of them are in every request.
        outputs: those that an answer has where none is asked for.
        more: those that it has where they are asked for.
        options: parameters that the model reads, of the request alone.
        max_batch: the most that the first side of a tensor may be; 0: it is a side as others are.
        parameters: what its metadata says besides.
    """

    name: str
    platform: str
    inputs: Sequence[Input]
    outputs: Sequence[Output]
    more: Sequence[Output] = ()
    options: Sequence[str] = ()
    max_batch: int = 0
    parameters: Mapping[str, Scalar] = field(default_factory=dict)

    @property
    def answers(self) -> dict[str, Output]:
        """All that may be asked for, by name."""
        return {each.name: each for each in (*self.outputs, *self.more)}

    @property
    def readable(self) -> tuple[str, ...]:
        """The parameters of a request that the model reads."""
        return (*self.options, *(name for each in self.inputs for name in each.options))

    def metadata(self) -> dict[str, Any]:
        """As GET /v2/models/NAME has it."""
        return {
            "name": self.name,
            "versions": [VERSION],
            "platform": self.platform,
            "inputs": [_metadata(each) for each in self.inputs],
            "outputs": [_metadata(each) for each in self.outputs],
            **({"parameters": dict(self.parameters)} if self.parameters else {}),
        }

    def config(self) -> dict[str, Any]:
        """As GET /v2/models/NAME/config has it: what of Triton's form means something here."""
        return {
            "name": self.name,
            "platform": self.platform,
            "backend": self.platform,
            "version_policy": {"latest": {"num_versions": 1}},
            "max_batch_size": self.max_batch,
            "input": [{**self._config(each), "format": each.format} for each in self.inputs],
            "output": [self._config(each) for each in self.outputs],
            "parameters": {
                name: {"string_value": str(value)} for name, value in self.parameters.items()
            },
        }

    def _config(self, tensor: Input | Output) -> dict[str, Any]:
        kind = "STRING" if tensor.datatype == BYTES else tensor.datatype
        # The first side is the batch's where there are batches, and goes without saying.
        sides = tensor.shape[1:] if self.max_batch else tensor.shape
        return {"name": tensor.name, "data_type": f"TYPE_{kind}", "dims": list(sides)}


def _metadata(tensor: Input | Output) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": list(tensor.shape),
        **({"parameters": dict(tensor.parameters)} if tensor.parameters else {}),
    }
