"""What a stream's file keeps beside the state: taken from its record, read, and brought back."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from service.schemas import KeptOfStream, StreamTruth
from service.stream_record import StreamRecord
from ttc_core.errors import shown
from ttc_core.frames import KINDS
from ttc_core.state_file import StateError


def to_keep(name: str, record: StreamRecord) -> KeptOfStream:
    """What a stream's file is to keep beside the state."""
    return KeptOfStream(
        stream=name,
        images=record.images,
        batches=record.batches,
        answers_from=record.answers_from,
        **record.truth.model_dump(),
        suspects=dict(record.suspects),
        suspect=record.suspect,
        suspect_since=record.suspect_since,
        suspect_in_a_row=record.suspect_in_a_row,
        mode=record.mode,
        doubted_since=record.doubted_since,
        held_since=record.held_since,
        acts=list(record.acts),
    )


def kept_of(name: str, given: Mapping[str, Any]) -> KeptOfStream:
    """What a stream's file keeps beside the state.

    Raises:
        StateError: that is none.
    """
    try:
        return KeptOfStream.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise StateError(
            f"What the file of stream {name} keeps beside its state is none: {where} "
            f"{shown(first['input'])}."
        ) from None


def bring_back(record: StreamRecord, kept: KeptOfStream) -> None:
    """Have a record be as its file kept it, but for what the method tells of itself."""
    record.images, record.batches, record.acts = kept.images, kept.batches, tuple(kept.acts)
    record.doubted_since, record.held_since = kept.doubted_since, kept.held_since
    counts = kept.suspects
    record.suspects = Counter({kind: counts[kind] for kind in KINDS if counts.get(kind)})
    if kept.suspect in KINDS:
        record.suspect, record.suspect_since = kept.suspect, kept.suspect_since
        record.suspect_in_a_row = kept.suspect_in_a_row
    record.truth = StreamTruth(labelled=kept.labelled, correct=kept.correct)
