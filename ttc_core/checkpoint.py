"""Weight files as people have them. No code is executed from a file.

A file may hold several sets of weights (a model and its moving average, say), each inside
containers and under prefixes that wrappers put in front of the names.
"""

import argparse
import contextlib
import datetime
import json
import pathlib
import pickletools
import re
import types
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from ttc_core.class_names import names_of
from ttc_core.errors import LoadError, told

# Sets of weights by the names that training scripts give them, the preferred first: a moving
# average is what its authors evaluate.
CONTAINERS = (
    *("model_ema", "state_dict_ema", "ema_state_dict", "ema_model_state_dict", "ema_model"),
    *("params_ema", "ema", "teacher", "state_dict", "model_state_dict", "model_state"),
    *("model", "net", "network", "module", "params", "weights", "student"),
)
# What wrappers put among a name's parts: compiling, several GPUs, sharding, checkpointing.
WRAPPERS = frozenset(
    ("_orig_mod", "module", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
)
# Never weights of a network, though full of tensors.
_OTHERS = re.compile(r"optim|sched|scaler|criterion|loss", re.IGNORECASE)
MOST_SETS = 20
# Where files keep the names of their classes, at their top or among a Lightning module's options.
CLASS_NAMES = ("class_names", "classes", "class_to_idx", "idx_to_class", "id2label")
OPTIONS = "hyper_parameters"
_DEPTH = 4
_NUMPY_KINDS = "biuf"
# Classes that hold data only, often beside the weights: options, times, paths, arrays of numpy.
_HARMLESS: list[Any] = [
    argparse.Namespace,
    types.SimpleNamespace,
    *(datetime.datetime, datetime.date, datetime.timedelta, datetime.timezone),
    pathlib.PosixPath,
    np.ndarray,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("bool", "i1", "u1", "i2", "i4", "i8", "f2", "f4", "f8")),
    np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    np._core.multiarray.scalar,  # type: ignore[attr-defined]
    (np._core.multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),  # type: ignore[attr-defined]
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),  # type: ignore[attr-defined]
]

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """What a file of weights holds.

    Attributes:
        sets: of weights, by where they lie in it, the preferred first; a bare state dict lies at
            "". The names come without what wrappers put among them (WRAPPERS).
        class_names: if it has them beside the weights.
    """

    sets: dict[str, Weights]
    class_names: tuple[str, ...] | None = None

    def classes(self, heads: Iterable[str]) -> int | None:
        """Count the classes by the rows of the head's weight; None where there is none.

        Args:
            heads: the names that it may have in the network; whatever lies above it in the file.
        """
        ends = tuple(f".{head}" for head in heads)
        for weights in self.sets.values():
            found = [name for name in weights if f".{name}".endswith(ends)]
            # A layer of the same name may lie deeper inside.
            for name in sorted(found, key=lambda name: name.count(".")):
                if weights[name].ndim >= 2:
                    return len(weights[name])
        return None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a safetensors or torch file. No code is executed from it.

    Raises:
        LoadError: the file is missing, unreadable, holds code, or no tensors by name.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is not there"
        raise LoadError(f"The weight file {path} {what}; a file is accepted.")
    if path.suffix == ".json":
        raise LoadError(
            f"{path} is an index of several files; expected is one file with all weights, as "
            "safetensors.torch.save_file or torch.save writes it."
        )
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}.") from None
    # Also under another name: eight bytes of length, then JSON.
    if path.suffix == ".safetensors" or start[8:] == b"{":
        named: object = None
        try:
            with safe_open(path, framework="pt") as safe:
                content: object = {name: safe.get_tensor(name) for name in safe.keys()}  # noqa: SIM118
                named = safe.metadata()
        except Exception as error:  # the library has several kinds of its own
            raise LoadError(f"{path} is no readable safetensors file: {told(error)}.") from None
    else:
        content = named = _read_torch_file(path)
    if not isinstance(content, Mapping) or not content:
        raise LoadError(f"{path} holds no state dict (tensors by name).")
    found = dict(islice(_weights(content, "", _DEPTH), MOST_SETS))
    if not found:
        name = shortened(str(next(iter(content))))
        raise LoadError(f"{path} holds no state dict: {name!r} is not a tensor.")
    return Checkpoint(found, _class_names(named))


def _class_names(content: object) -> tuple[str, ...] | None:
    """The names of the classes among what a file holds besides weights."""
    if not isinstance(content, Mapping):
        return None
    options = content.get(OPTIONS)
    for place in (content, options if isinstance(options, Mapping) else {}):
        for name in CLASS_NAMES:
            value = place.get(name)
            # What is of another form means something else.
            with contextlib.suppress(ValueError, RecursionError):
                return names_of(json.loads(value) if isinstance(value, str) else value)
    return None


def _read_torch_file(path: Path) -> object:
    if zipfile.is_zipfile(path):
        with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = {entry.filename.partition("/")[2] for entry in entries}
            saver = _saver(names)
            if saver is not None:
                raise LoadError(
                    f"{path} is no file of weights: torch.{saver[0]}.save wrote it. It is served "
                    f"frozen, without the network's name, as {saver[1]}@{path}; what adapts is a "
                    "state dict: torch.save(model.state_dict(), 'weights.pt')."
                )
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise LoadError(
                    f"{path} is no torch file of plain tensors: it is compressed, as torch.save "
                    "never does and torch.jit.save may; save the state dict with torch.save."
                )
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged or foreign files
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
        cause = re.search(r"WeightsUnpickler error: (.+)", str(error))
        # What else torch says of a file that is none, is how to run whatever is in it, or where
        # its bytes made no sense.
        other = told(error) if isinstance(error, (OSError, RuntimeError)) else "it is none"
        if not path.stat().st_size:
            other = "it is empty"
        reason = f"it holds {foreign[1]}" if foreign else cause[1] if cause else other
        whole = _whole_object(path) if foreign else None
        if whole is not None:
            raise LoadError(
                f"{path} holds a whole object ({whole}), as torch.save(model) writes it, and "
                "reading it would run code. Save the weights alone, where the model was made: "
                "torch.save(model.state_dict(), 'weights.pt'), or as safetensors. "
                "Files that hold code are not opened."
            ) from None
        raise LoadError(
            f"{path} is no torch file of plain tensors ({reason}). Files that hold code are not "
            "opened; save the state dict with torch.save or as safetensors."
        ) from None


def _saver(names: Collection[str]) -> tuple[str, str] | None:
    """What of torch wrote an archive of these files, and the spec that serves it, if not save."""
    if "constants.pkl" in names:
        return "jit", "torchscript"
    if "archive_format" in names or "serialized_exported_program.json" in names:
        return "export", "export"
    return None


def _whole_object(path: Path) -> str | None:
    """The class whose object a torch file is as a whole; None where it is a dict, say.

    The pickle's first operations are read, and none of them is done.
    """
    with contextlib.suppress(Exception), zipfile.ZipFile(path) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith("/data.pkl"))
        with archive.open(name) as file:
            for operation, argument, _ in islice(pickletools.genops(file), 3):
                if operation.name == "GLOBAL" and "OrderedDict" not in str(argument):
                    return str(argument).replace(" ", ".")
                if operation.name not in ("PROTO", "FRAME"):
                    return None
    return None


def _weights(content: Mapping[Any, Any], place: str, depth: int) -> Iterator[tuple[str, Weights]]:
    """Find the mappings of names to tensors, known containers first."""
    inner = {str(key): value for key, value in content.items() if isinstance(value, Mapping)}
    known = [name for name in CONTAINERS if name in inner]
    for name in (*known, *(name for name in inner if name not in known)):
        if depth and not _OTHERS.search(name):
            yield from _weights(inner[name], f"{place}.{name}" if place else name, depth - 1)
    own = {
        unwrapped(key): tensor
        for key, value in content.items()
        if isinstance(key, str) and (tensor := _tensor(value)) is not None
    }
    own.pop("n_averaged", None)  # of stochastic weight averaging
    if own:
        yield place, own


def _tensor(value: object) -> Tensor | None:
    if isinstance(value, np.ndarray) and value.dtype.kind in _NUMPY_KINDS:
        return torch.from_numpy(np.array(value, value.dtype.newbyteorder("=")))
    return value if isinstance(value, Tensor) else None


def unwrapped(name: str) -> str:
    """A name without what wrappers put among its parts."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def shortened(name: str) -> str:
    """A name, as long as a sentence bears it."""
    return name if len(name) <= 80 else f"{name[:80]}…"
