"""From an image as a program has it to the bytes of a file that holds the same pixels."""

import io
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

if TYPE_CHECKING:  # neither is imported before an image of its kind is there
    import numpy as np
    import PIL.Image
    from numpy.typing import NDArray

ImageLike: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | NDArray[np.uint8] | PIL.Image.Image"
)
"""A path, the bytes of a file, pixels, or a picture of Pillow's."""
Images: TypeAlias = "ImageLike | Iterable[ImageLike]"

_ACCEPTED = (
    "a path, the bytes of an image file, a uint8 array of shape (H, W) or (H, W, 3), or an image "
    "of Pillow's"
)
# What a PNG holds as it is.
_LOSSLESS = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


def files_of(images: Images) -> list[bytes]:
    """The files of one image, or of several.

    - A path (`str`, `Path`) is read; bytes are taken to be a whole file.
    - An array is uint8, (H, W), grey, or (H, W, 3), red, green, blue; it is sent as PNG.
    - A picture of Pillow's is sent as PNG, with the orientation that its EXIF says, as of a file.

    Raises:
        ValueError: there is none, one cannot be read, or something is none of these. Nothing is
            scaled, clipped or converted by guess: the sentence says how it is made to fit.
    """
    if isinstance(images, (str, os.PathLike, bytes, bytearray, memoryview)) or _is_pixels(images):
        return [_file_of(images, "The image")]
    try:
        several = list(cast(Iterable[ImageLike], images))
    except TypeError:
        raise ValueError(
            f"images are of type {type(images).__name__}; an image is {_ACCEPTED}."
        ) from None
    if not several:
        raise ValueError("images must hold at least one image; got none.")
    return [_file_of(image, f"images[{number}]") for number, image in enumerate(several)]


def to_png(pixels: "NDArray[np.uint8]") -> bytes:
    """Encode pixels (H, W, 3), RGB, or (H, W), grey, as a PNG file: lossless, quick, not small."""
    from PIL import Image

    return _png(Image.fromarray(pixels))


def _png(image: "PIL.Image.Image") -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1, exif=image.info.get("exif"))
    return file.getvalue()


def _file_of(image: object, name: str) -> bytes:
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    if isinstance(image, (str, os.PathLike)):
        try:
            return Path(image).read_bytes()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"{name}, {os.fspath(image)}, cannot be read: {reason}.") from error
    if _is_array(image):
        _check_pixels(array := cast("NDArray[np.uint8]", image), name)
        return to_png(array)
    if _is_picture(image):
        picture = cast("PIL.Image.Image", image)
        if picture.mode not in _LOSSLESS:
            raise ValueError(
                f"{name} is of Pillow's mode {picture.mode}, which no PNG holds as it is; accepted "
                f"are {', '.join(_LOSSLESS)}: image.convert('RGB') makes one of it."
            )
        try:
            return _png(picture)
        except Exception as error:  # its file is read only now; Pillow promises no type of error
            raise ValueError(f"{name}, of Pillow's, cannot be read: {error}.") from error
    raise ValueError(f"{name} is of type {type(image).__name__}; an image is {_ACCEPTED}.")


def _check_pixels(array: "NDArray[np.uint8]", name: str) -> None:
    has_form = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if array.dtype == "uint8" and has_form and array.size:
        return
    hint = ""
    if array.dtype.kind == "f":
        hint = " Of values in [0, 1], (255 * array).round().astype('uint8') makes one."
    elif array.ndim == 4:
        hint = " Several images are a list: list(array)."
    elif array.ndim == 3 and array.shape[0] == 3:
        hint = " Channels come last: array.transpose(1, 2, 0)."
    raise ValueError(
        f"{name} is an array of {array.dtype}, shape {array.shape}; accepted is uint8, 0 to 255, "
        f"of shape (H, W), grey, or (H, W, 3), red, green, blue.{hint}"
    )


def _is_pixels(image: object) -> bool:
    return _is_array(image) or _is_picture(image)


def _is_array(image: object) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(image, numpy.ndarray)


def _is_picture(image: object) -> bool:
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(image, pillow.Image)
