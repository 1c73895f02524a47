"""Read Fashion-MNIST's IDX files, and bring its pictures to the size the bundled model takes.

Debian's package dataset-fashion-mnist installs the files; Zalando SE published them under MIT.
Source: Xiao, Rasul, Vollgraf, "Fashion-MNIST", arXiv:1708.07747.
"""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ttc_core.errors import UserError
from ttc_core.geometry import fit

DIRECTORY = Path("/usr/share/datasets/fashion-mnist")
SIZE = 32
# Test pictures that are the bundled stream.
STREAM_IMAGES = 2000
CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def read_split(directory: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the pictures (N, 28, 28) uint8 and labels (N,) of `split`, "train" or "t10k".

    Raises:
        UserError: a file is missing, or is not Fashion-MNIST's; the sentence says where it comes
            from.
    """
    arrays = []
    for kind, header_bytes in (("images-idx3", 16), ("labels-idx1", 8)):
        path = directory / f"{split}-{kind}-ubyte.gz"
        if not path.is_file():
            raise UserError(
                f"{path} is missing; Debian's package dataset-fashion-mnist installs it, "
                "or give the folder that holds Fashion-MNIST's four .gz files."
            )
        try:
            content = gzip.decompress(path.read_bytes())
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path} cannot be read: {error}.") from error
        arrays.append(np.frombuffer(content[header_bytes:], np.uint8))
    pictures, labels = arrays
    if len(labels) == 0 or len(pictures) != 28 * 28 * len(labels) or labels.max() >= len(CLASSES):
        raise UserError(f"{directory} does not hold Fashion-MNIST's pictures and labels.")
    return pictures.reshape(-1, 28, 28), labels.astype(np.int64)


def held_out() -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Yield the test pictures (8000, 32, 32, 3) that are not in the bundled stream, and labels.

    The bundled model's calibration record is of them: `ttc calibrate bundled
    ttc_core.zoo.fashion_mnist:held_out --out ttc_core/zoo/weights.safetensors.calibration.json`.

    Raises:
        UserError: as `read_split`.
    """
    pictures, labels = read_split(DIRECTORY, "t10k")
    yield to_rgb(pictures[STREAM_IMAGES:]), labels[STREAM_IMAGES:]


def to_rgb(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Resize grey pictures (N, 28, 28) as the server would, and repeat them: (N, 32, 32, 3)."""
    resized = [np.asarray(fit(Image.fromarray(picture), SIZE, None)) for picture in pictures]
    return np.repeat(np.stack(resized)[..., None], 3, axis=3)
