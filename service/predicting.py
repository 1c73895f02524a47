"""Predicting on the device thread: the images of a pass, asked of their streams and answered."""

import contextlib
import time
from collections.abc import Sequence
from functools import partial

import torch

from service import tracing
from service.answering import Image, Part, Pass, Said, ask, hand_in_hand, shed_of
from service.shedding import Shed
from service.stream_record import StreamRecord
from service.streams import Streams
from service.truth import Truth
from service.undoing import Undoing
from ttc_core.together import Done, Failed, together

OUT_OF_MEMORY = (MemoryError, torch.OutOfMemoryError)


class Predicting:
    """Answers passes; nothing is learned by that. For the device thread alone."""

    def __init__(self, table: Streams, truth: Truth, undoing: Undoing) -> None:
        self._table, self._truth, self._undoing = table, truth, undoing

    def predict(
        self, parts: Sequence[tuple[str, Sequence[Image]]], learn: bool, shed: Shed | None
    ) -> Pass:
        """Answer images of streams, as `Engine.predict`.

        Raises:
            MemoryError: nothing was answered, for want of memory.
        """
        started = time.perf_counter()
        # Until what follows the batch is done: none loses its place, and so what it would learn.
        self._table.at_work(stream for stream, _ in parts)
        works = [partial(self._answer, stream, items, learn, shed) for stream, items in parts]
        try:
            with tracing.span("forward"):
                outcomes = hand_in_hand(self._table.saving.source, works)
                answered = [each.value for each in outcomes if isinstance(each, Done)]
                errors = [each.error for each in outcomes if isinstance(each, Failed)]
                short = next((each for each in errors if isinstance(each, OUT_OF_MEMORY)), None)
                if not answered:
                    raise errors[0] if short is None else MemoryError(str(short))
        except Exception:
            self._table.at_work(())
            raise
        sound = [part for part in answered if part.is_sound]
        if not sound:
            self._table.at_work(())  # none of them learns
        kept = sound or answered
        images = dict(parts)
        for part in sound:
            self._remember(part, images[part.stream])
        failed = images.keys() - {part.stream for part in kept}
        return Pass(kept, time.perf_counter() - started, failed, short is not None)

    def fails(self, stream: str, images: Sequence[Image], learn: bool, shed: Shed | None) -> bool:
        """Whether images of a stream fail; their answers are nobody's, and nothing follows."""
        (outcome,) = together([partial(self._answer, stream, images, learn, shed)])
        return isinstance(outcome, Failed) or not outcome.value.is_sound

    def _answer(self, stream: str, items: Sequence[Image], learn: bool, shed: Shed | None) -> Part:
        # It is kept once it is adapted: nothing that fails takes a stream's place.
        record = self._table.get(stream)
        lacks = [shed_of(record.method, item, shed) for item in items]
        said = self._ask(stream, record, items, learn, shed)
        return Part(stream, record, *said, [item.label for item in items], lacks)

    def _remember(self, part: Part, items: Sequence[Image]) -> None:
        compared = zip(items, part.answers.compared, strict=False)  # there may be none
        # One image again and again, of which nothing is to come, is no sign of the stream.
        both = [each if item.learn else None for item, each in compared]
        ids = [item.id for item in items]
        self._truth.remember(part.stream, ids, part.predicted, part.labels, part.confidences, both)

    def _ask(
        self,
        stream: str,
        record: StreamRecord,
        items: Sequence[Image],
        learn: bool,
        shed: Shed | None,
    ) -> Said:
        """Have a stream's method answer.

        Where it has no answer at all and the source has, it is not the images: the stream goes
        back to the source, which answers. Else it would fail for ever.
        """
        said = None
        try:
            said = ask(record.method, items, learn, shed)
        except OUT_OF_MEMORY:
            raise  # fewer images may fit: the queue tries that
        except Exception:
            if record.is_new:
                raise
        if said is None:
            with contextlib.suppress(Exception):  # what was the matter may be over
                said = ask(record.method, items, learn, shed)
        if said is not None and (said[1].sound.any() or record.is_new):
            return said
        try:
            source = self._table.saving.source.fork()
            answer = ask(source, items, learn, shed)
        except Exception:
            if said is None:
                raise
            return said
        if learn and answer[1].sound.any():
            self._undoing.put_back(stream, record, source)
        return answer
