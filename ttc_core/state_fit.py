"""Whether tensors and counts could be a method's state: held against the one that it has.

A state is held against it before it is written, and before it is taken up.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ttc_core.errors import shown
from ttc_core.methods.contract import State
from ttc_core.state_file import Counters, Form

# Whole numbers that our own methods count with; a user's may hold any others.
COUNTS = {"steps", "pending_batches", "pending_images", "learned_batches", "images_seen"}
MOST_COUNT = 2**53
FLOATS = {"F64", "F32", "F16", "BF16"}


def misfit(stored: Mapping[str, Form], own: State) -> str | None:
    """Name the first tensor that is missing, of another shape or kind than the method's, or extra.

    The network names the entries of affine and moments, and by them those of gradients and
    optimizer; what other sections hold is the method's own affair.
    """
    for section in ("affine", "moments"):
        for key, value in own.get(section, {}).items():
            if isinstance(value, Tensor) and f"{section}/{key}" not in stored:
                return f"{section} {key}"
    for key, (dtype, shape) in stored.items():
        section, entry = split_key(key)
        like = like_of(own, section, entry)
        named_by_network = section in ("affine", "moments", "gradients", "optimizer")
        if like is None and named_by_network and "affine" in own:
            return f"{section} {entry}"
        if like is None:
            continue
        # What an optimizer counts of a parameter, its steps, is one number.
        one_number = section == "optimizer" and not shape
        shaped = one_number or not named_by_network or tuple(shape) == like.shape
        if not shaped or (dtype in FLOATS) != like.is_floating_point():
            return f"{section} {entry}"
    return None


def miscount(stored: Mapping[str, Form], counters: Counters, own: State) -> str | None:
    """Name the first count that counts nothing."""
    for section, values in own.items():
        for key in COUNTS & values.keys():
            saved = counters.get(section, {}).get(key, 0)
            if type(saved) is not int or not 0 <= saved <= MOST_COUNT:
                return f"{section} {key} {shown(saved)}"
    pending = counters.get("counters", {}).get("pending_batches")
    if pending is not None and "gradients" in own:
        has_gradients = any(split_key(key)[0] == "gradients" for key in stored)
        if bool(pending) != has_gradients:
            return f"gradients of {pending} pending batches"
    return None


def bad_number(tensors: Mapping[str, Tensor], own: State) -> str | None:
    """Name the first tensor of the network's, or of an optimizer's, that could not have been."""
    for key, tensor in tensors.items():
        section, entry = split_key(key)
        like = like_of(own, section, entry)
        if like is None:
            continue
        if not like.is_floating_point() and tensor.dtype != like.dtype:
            return f"{section} {entry}"
        if section in ("affine", "moments", "gradients", "optimizer"):
            negative = section == "optimizer" and tensor.ndim == 0 and float(tensor) < 0
            if negative or not bool(torch.isfinite(tensor.to(like.dtype)).all()):
                return f"{section} {entry}"
    return None


def like_of(own: State, section: str, entry: str) -> Tensor | None:
    """The method's tensor that a stored one should resemble, if one is known."""
    value = own.get(section, {}).get(entry)
    if (section, entry) == ("optimizer", "step"):
        return torch.zeros(())
    if section in ("gradients", "optimizer"):
        key, _, name = entry.rpartition(":")
        value = own.get("affine", {}).get(name) if bool(key) == (section == "optimizer") else None
    return value if isinstance(value, Tensor) else None


def split_key(key: str) -> tuple[str, str]:
    """The section and the entry of a stored tensor's name."""
    section, _, entry = key.partition("/")
    return section, entry
