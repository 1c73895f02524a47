"""What `GET /events` sends, read by either client: frames to typed events, across reconnections."""

from collections.abc import Iterator

from pydantic import TypeAdapter, ValidationError

from service.client.calls import Call
from service.client.errors import ServiceError
from service.live.schemas import LiveEvent, LiveState, LiveTick

EVENTS = Call("GET", "/events", LiveState)
# Between the end of one connection and the next: a server that comes and goes is not stormed.
PAUSE_SECONDS = 0.5
# A state of a thousand streams has about one of them.
MOST_FRAME_BYTES = 64 << 20
_KINDS: dict[bytes, TypeAdapter[LiveEvent]] = {
    b"state": TypeAdapter(LiveState),
    b"tick": TypeAdapter(LiveTick),
}


class Frames:
    """Makes events of the bytes of one connection."""

    def __init__(self, url: str) -> None:
        self._url, self._rest = url, b""

    def feed(self, piece: bytes) -> Iterator[LiveEvent]:
        """Yield the events that a piece completes.

        Raises:
            ServiceError: it is none of the service's.
        """
        self._rest += piece
        if len(self._rest) > MOST_FRAME_BYTES:
            raise self._foreign()
        *frames, self._rest = self._rest.split(b"\n\n")
        for frame in frames:
            fields = dict(line.partition(b": ")[::2] for line in frame.split(b"\n"))
            kind = fields.get(b"event")
            # Comments, the end, and what later versions may send, are let be.
            if kind in _KINDS:
                try:
                    yield _KINDS[kind].validate_json(fields.get(b"data", b""))
                except ValidationError:
                    raise self._foreign() from None

    def check(self, media_type: str) -> None:
        """Raise ServiceError if what is answered is no stream of events."""
        if not media_type.startswith("text/event-stream"):
            raise self._foreign()

    def none_came(self) -> ServiceError:
        """What to raise where the connection ended before the first."""
        detail = f"{self._url}{EVENTS.path} ended before anything came."
        return ServiceError(None, detail, may_repeat=True)

    def _foreign(self) -> ServiceError:
        return ServiceError(
            200,
            f"{self._url}{EVENTS.path} sends something else than expected; is it the service, and "
            "of the client's version?",
        )
