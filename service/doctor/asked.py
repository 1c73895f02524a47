"""What an examination is asked for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ttc_core.model import SourceModel

# Images of the data that are looked at, unless another number is named.
IMAGES = 400


def _silent(_: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Asked:
    """What to look over.

    Attributes:
        model: its spec.
        load: loads it as `ttc serve` would with the same options; what is named (mean, std as three
            numbers each, precision) in their place. Raises LoadError or RecordError.
        options: those of `ttc serve` that were given, flag → value; None: a flag alone.
        data: as `ttc evaluate` takes it; None: none.
        images: at most so many of it are looked at.
        seed: which ones, and the order in which they are shuffled.
        say: is told what takes a while.
    """

    model: str
    load: Callable[..., SourceModel]
    options: Mapping[str, str | None]
    device: str = "auto"
    data: str | None = None
    images: int = IMAGES
    seed: int = 0
    say: Callable[[str], None] = _silent
