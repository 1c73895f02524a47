"""The networks and images of the studies: what the default was chosen on, and what only reports it.

They need the data beside the checkout and the packages of benchmarks/requirements.txt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TUNED = ("gaussian_noise", "defocus_blur", "fog", "jpeg_compression")
OTHERS = (
    *("impulse_noise", "motion_blur", "frost", "elastic_transform", "glass_blur", "brightness"),
    *("zoom_blur", "shot_noise", "snow", "contrast", "pixelate"),
)
SEEN = ("contrast", "frost")
SHARED = "../shared/data/models"
CIFAR10 = "benchmarks.cifar10_stream:load"
LITE0 = "benchmarks.efficientnet:lite0"


@dataclass(frozen=True)
class Place:
    """A network and images for it.

    Attributes:
        name: for the table, and for --only.
        model, data: specs.
        corruptions: beside clean; none where the images have shifted by themselves.
        streams: titles of the only streams that make sense; None: the study's.
    """

    name: str
    model: str
    data: str
    corruptions: Sequence[str] = ()
    streams: Sequence[str] | None = None


def _from(names: Sequence[str], first: str) -> tuple[str, ...]:
    """The names from the first one on, round and round: networks begin with different ones."""
    at = names.index(first)
    return (*names[at:], *names[:at])


def _bundled(corruptions: Sequence[str]) -> Place:
    return Place("bundled", "bundled", "bundled", corruptions)


def _cifar(name: str, corruptions: Sequence[str]) -> Place:
    return Place(name, f"cifar/{name}@{SHARED}/{name}.th", CIFAR10, corruptions)


def _digits(network: str, shift: str) -> Place:
    module = "benchmarks.digits"
    return Place(f"digits-{network}-{shift}", f"{module}:{network}", f"{module}:{shift}")


def _clip(name: str) -> Place:
    return Place(f"clip-{name}", LITE0, f"benchmarks.clips:{name}", ("fog",), ("file",))


PLACES: Mapping[str, Sequence[Place]] = {
    "tuning": (
        _bundled(_from(TUNED, "fog")),
        _cifar("resnet20", TUNED),
        _cifar("resnet32", _from(TUNED, "defocus_blur")),
        Place(
            "resnet26-gn",
            f"benchmarks.resnet26_gn:network@{SHARED}/resnet26_gn.pth",
            CIFAR10,
            _from(TUNED, "jpeg_compression"),
        ),
        *(_digits("resnet8", shift) for shift in ("clean", "enlarged", "inverted", "blurred")),
        *(_digits("resnet14", shift) for shift in ("clean", "enlarged", "inverted", "blurred")),
    ),
    "reporting": (
        Place(
            "cifar10-network",
            "benchmarks.cifar10_network:network@results/cifar10-network.pt",
            CIFAR10,
            (*OTHERS, *TUNED),
        ),
        # Contrast and frost on this network decided one thing or another.
        _bundled([name for name in _from(OTHERS, "motion_blur") if name not in SEEN]),
        _cifar("resnet20", _from(OTHERS, "frost")),
        Place(
            "lite0",
            LITE0,
            "benchmarks.efficientnet:photographs",
            _from(OTHERS, "elastic_transform"),
            ("iid", "changing:100"),
        ),
        *(_clip(name) for name in ("bikes", "carphone", "bunny")),
    ),
}
