"""The calls of the service: what each sends, and the type of what comes back."""

import base64
import contextlib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from operator import index
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from service.client.images import Images, files_of
from service.schemas import (
    FeedbackResponse,
    Health,
    PredictResponse,
    ReloadResponse,
    ResetResponse,
    RollbackResponse,
    SnapshotsResponse,
    StatusResponse,
)

Reply = TypeVar("Reply", bound=BaseModel)


@dataclass(frozen=True)
class Call(Generic[Reply]):
    """One request, ready to be sent, and the type of what comes back."""

    method: str
    path: str
    reply: type[Reply]
    params: dict[str, str] = field(default_factory=dict)
    admin: bool = False
    # Off: what it asks is how things are at this moment.
    may_repeat: bool = True
    body: bytes | None = field(default=None, repr=False)


def predict_call(
    images: Images,
    *,
    labels: Sequence[int | None] | None = None,
    ids: Sequence[str | None] | None = None,
    stream: str | None = None,
    top_k: int = 1,
    learn: bool = True,
    context: bool = True,
) -> Call[PredictResponse]:
    """Build a request for predictions; may run in any thread, ahead of its sending.

    Args:
        images: one or more, each a path, the bytes of a file (JPEG, PNG, WebP, GIF, BMP), a uint8
            array (H, W) or (H, W, 3) in RGB, or a picture of Pillow's; see `files_of`.
        labels: the true classes, as many as images; the server counts them, it never learns them.
        ids: as many names, echoed in the answer.
        stream: whose stream the images belong to; None: the default one.
        top_k: how many classes each answer lists.
        learn: off: the images are answered, and nothing moves.
        context: off: the prior neither weighs in the answers nor follows them; adaptation does.

    Raises:
        ValueError: no images, one that is none, another number of labels or ids, a label that is
            no whole number, or an id that is no text.
    """
    entries: list[dict[str, Any]] = [
        {"b64": base64.b64encode(file).decode("ascii")} for file in files_of(images)
    ]
    for name, values in (("label", labels), ("id", ids)):
        if values is None:
            continue
        if isinstance(values, str | bytes) or not isinstance(values, Collection):
            raise ValueError(f"{name}s must be a list, one for each image; got {values!r:.80}.")
        if len(values) != len(entries):
            raise ValueError(
                f"{name}s must be as many as images, {len(entries)}; got {len(values)}."
            )
        for entry, value in zip(entries, values, strict=True):
            if value is not None:
                entry[name] = _text(value) if name == "id" else _whole_number(value)
    params = {} if top_k == 1 else {"top_k": str(top_k)}
    if not learn:
        params["learn"] = "false"
    if not context:
        params["context"] = "false"
    return Call(
        "POST",
        "/predict",
        PredictResponse,
        params | _stream(stream),
        body=json.dumps({"images": entries}).encode(),
    )


def feedback_call(
    labels: Iterable[tuple[str, int]], *, stream: str | None = None
) -> Call[FeedbackResponse]:
    """Build a request that tells labels which came after the answers.

    Args:
        labels: at most 10,000 pairs of an image's id and its true class.
        stream: whose stream the images belong to; None: the default one.

    Raises:
        ValueError: one is no such pair.
    """
    entries = [
        {"id": _text(name), "label": _whole_number(label)} for name, label in map(_pair, labels)
    ]
    return Call(
        "POST",
        "/feedback",
        FeedbackResponse,
        _stream(stream),
        body=json.dumps({"labels": entries}).encode(),
    )


def _whole_number(label: Any) -> int:
    if not isinstance(label, bool):
        with contextlib.suppress(TypeError):
            return index(label)
    raise ValueError(f"labels must be whole numbers, or None; got {label!r:.80}.")


def _text(name: Any) -> str:
    if not isinstance(name, str):
        raise ValueError(f"ids must be texts, or None; got {name!r:.80}.")
    return name


def _pair(entry: Any) -> tuple[Any, Any]:
    if isinstance(entry, Sequence) and not isinstance(entry, str | bytes) and len(entry) == 2:
        return entry[0], entry[1]
    raise ValueError(f"labels must be pairs of an id and a class; got {entry!r:.80}.")


def reset_call(stream: str | None) -> Call[ResetResponse]:
    return Call("POST", "/reset", ResetResponse, _stream(stream), admin=True)


def rollback_call(stream: str | None, to: int | None) -> Call[RollbackResponse]:
    params = _stream(stream) | ({} if to is None else {"to": str(to)})
    return Call("POST", "/rollback", RollbackResponse, params, admin=True)


def snapshots_call(stream: str | None) -> Call[SnapshotsResponse]:
    return Call("GET", "/snapshots", SnapshotsResponse, _stream(stream))


RELOAD = Call("POST", "/model", ReloadResponse, admin=True)
STATUS = Call("GET", "/status", StatusResponse)
READY = Call("GET", "/readyz", Health, may_repeat=False)


def _stream(name: str | None) -> dict[str, str]:
    return {} if name is None else {"stream": name}
