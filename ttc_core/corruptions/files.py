"""Corrupt files: an image, a folder of images, or an array of images on disk.

What is written is lossless (PNG unless a lossless name was asked for): a JPEG on top
would be a sixteenth corruption. Images are handled one at a time and arrays in parts, so
that the size of a data set does not matter.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from ttc_core.corruptions import check, corrupt
from ttc_core.corruptions.pixels import Images
from ttc_core.files import written_whole
from ttc_core.geometry import to_rgb
from ttc_core.pictures import open_picture

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
_LOSSLESS = {".png": "PNG", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF"}
_SUFFIXES = (*_LOSSLESS, ".jpg", ".jpeg", ".webp")
_VALUES_AT_ONCE = 2**25  # 32 MiB of an array read at a time


def corrupt_path(source: Path, target: Path, name: str, severity: int, seed: int) -> int:
    """Corrupt what is at source, write it to target, and return the number of images.

    Args:
        source: an image file; a folder, of which all images at any depth are taken in the
            order of their sorted paths; or a .npy file (N, H, W, 3) uint8.
        target: a file for a file, a folder for a folder. A file's suffix becomes .png
            (.npy for an array) if it is none in which we write without loss. Folders that
            are missing are made, files that are there are replaced.
        name, severity, seed: as for corrupt; the k-th image has number k, from 0.

    Raises:
        FileNotFoundError: there is nothing at source.
        ValueError: source holds no images or cannot be read, target cannot be written or
            lies within source, or name, severity or seed is not accepted.
    """
    check(name, severity, seed=seed)
    if not source.exists():
        raise FileNotFoundError(f"There is no file or folder {source}.")
    if not source.is_dir() and not source.is_file():
        raise ValueError(f"{source} is neither a file nor a folder.")
    if source.is_dir():
        if target.exists() and not target.is_dir():
            raise ValueError(f"{source} is a folder, so {target} must be one; it is a file.")
        jobs = _folder_jobs(source, target)
    else:
        if target.is_dir():
            target = target / source.name
        if source.suffix.lower() == ".npy":
            return _corrupt_array(source, target, name, severity, seed)
        jobs = [(source, _lossless(target))]
    _refuse_overlap(source, target, *(written for _, written in jobs))
    for number, (path, written) in enumerate(jobs):
        try:
            image = corrupt(_read(path)[None], name, severity, seed=seed, first_index=number)[0]
        except ValueError as error:
            if len(jobs) == 1:
                raise
            raise ValueError(
                f"{error} {number:,} of {len(jobs):,} images were written before it."
            ) from error
        with written_whole(written) as file:
            Image.fromarray(image).save(file, _LOSSLESS[written.suffix.lower()])
    return len(jobs)


def _folder_jobs(source: Path, target: Path) -> list[tuple[Path, Path]]:
    """Pair every image below source with the file it becomes below target."""
    jobs: dict[Path, Path] = {}
    for path in sorted(source.rglob("*")):
        # Hidden files are the litter of other systems, also where they end in .jpg.
        inside = path.relative_to(source)
        hidden = any(part.startswith(".") or part == "__MACOSX" for part in inside.parts)
        if path.suffix.lower() not in _SUFFIXES or hidden or not path.is_file():
            continue
        written = _lossless(target / inside)
        if written in jobs:
            raise ValueError(f"{jobs[written]} and {path} would both be written as {written}.")
        jobs[written] = path
    if not jobs:
        raise ValueError(f"{source} holds no images; looked for {', '.join(sorted(_SUFFIXES))}.")
    return [(path, written) for written, path in jobs.items()]


def _lossless(path: Path) -> Path:
    """Return the name under which we write: path, or path as .png."""
    suffix = path.suffix.lower()
    if suffix in _LOSSLESS:
        return path
    return path.with_suffix(".png") if suffix in _SUFFIXES else path.with_name(path.name + ".png")


def _refuse_overlap(source: Path, *targets: Path) -> None:
    kept = source.resolve()
    for target in targets:
        if target.resolve().is_relative_to(kept):
            raise ValueError(
                f"{target} is {source} itself or lies within it; choose a place outside."
            )


def _read(path: Path) -> Images:
    """Return an image file as (H, W, 3) uint8, upright, RGB."""
    try:
        return np.array(to_rgb(open_picture(path.read_bytes(), _FORMATS).load()))
    except Exception as error:  # Pillow's decoders fail on bad files in many ways
        raise ValueError(f"{path} cannot be read as an image: {error}.") from error


def _corrupt_array(source: Path, target: Path, name: str, severity: int, seed: int) -> int:
    if target.suffix.lower() != ".npy":
        target = target.with_name(target.name + ".npy")
    _refuse_overlap(source, target)
    try:
        images = np.lib.format.open_memmap(source, mode="r")
    except Exception as error:  # numpy promises no particular types for damaged files
        raise ValueError(f"{source} cannot be read as a .npy array: {error}") from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not images.size:
        raise ValueError(
            f"{source} must hold images as (N, H, W, 3) uint8, N at least 1; "
            f"it holds {images.shape} {images.dtype}."
        )
    count = len(images)
    chunk = max(1, _VALUES_AT_ONCE // images[0].size)
    header = {"descr": "|u1", "fortran_order": False, "shape": images.shape}
    with written_whole(target) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, count, chunk):
            part = images[start : start + chunk]
            file.write(corrupt(part, name, severity, seed=seed, first_index=start).tobytes())
    return count
