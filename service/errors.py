"""What the service answers when it does not answer with a prediction. Imports nothing of ours.

Refused                   its text is the sentence that the client reads
├── Unreadable            400  the bytes cannot be parsed
├── Unauthorized          401  the token is missing or wrong
├── Forbidden             403  sent by a web page of another origin
├── NoModel               404  no model of that name, or of that version
├── NoSnapshot            404  nothing that a stream could be brought back to
│   └── SavedDoesNotFit   404  what is saved of a stream is none of its
├── ReceiveTimeout        408  the request did not arrive whole in time
├── ModelRefused          409  what was read in the served model's place cannot take it
├── TooLarge              413  bytes, pixels or count over a limit
├── UnknownType           415  a media type that is not taken
├── OutOfRange            422  a value that cannot be used
├── HeadTooLarge          431  the request line and headers over their limit
├── QueueFull             429  come back later
├── TooManyStreams        429  no place for another stream
├── PredictionFailed      500  the model failed on this request
├── NotBroughtBack        500  a snapshot that its stream does not take up
├── StateNotRemoved       500  a reset stream would come back after a restart
├── UnknownCoding         501  a body's transfer coding that is not known
├── NotReady              503  loading or draining
└── DeadlineExpired       504  the request's own deadline passed before its turn

Whoever raises one writes the sentence: what was wrong, the rule with its unit, what came.
Statuses and titles stand in one table, below; nothing else in the service knows them.
"""

import contextlib
from collections.abc import Iterator
from typing import ClassVar


class Refused(Exception):
    """A request that is turned away; raise one of the subclasses.

    Args:
        detail: the sentence for the client; also `str(error)`.
        index: the image at fault, counted from 0 in the request; None: the whole request.
        retry_after: seconds after which trying again makes sense; None: not known.

    `reason` is the value of the label of `ttc_rejected_images_total`. It is None for what rejects
    no image (a wrong token, an unknown id, a body that never arrived, a failure of our own):
    such an error is not counted there.
    """

    reason: ClassVar[str | None] = None

    def __init__(
        self, detail: str, *, index: int | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(detail)
        self.index = index
        self.retry_after = retry_after


@contextlib.contextmanager
def of_image(index: int, count: int, others: str = "", *, name: str = "Image") -> Iterator[None]:
    """Have a refusal say that it is of image `index`, from 0, of a request of `count`."""
    try:
        yield
    except Refused as error:
        sentence = f"{name} {index + 1} of {count}: {error}{others}"
        raise type(error)(sentence, index=index) from error


class ClientGone(Exception):
    """The client closed the connection; nobody waits for an answer, not even for a refusal."""


class Unreadable(Refused):
    """The bytes cannot be parsed: a damaged image, malformed JSON, a broken form."""

    reason = "unreadable"


class Unauthorized(Refused):
    """The route asks for a token; it is missing or wrong."""


class Forbidden(Refused):
    """A web page of another origin sent it by way of somebody's browser."""


class NoModel(Refused):
    """There is no model of that name, or it has no such version."""


class NoSnapshot(Refused):
    """A stream cannot be brought back: it has no snapshot, or none of that version."""


class SavedDoesNotFit(NoSnapshot):
    """What is saved of a stream is damaged, or of another method, model or settings."""


class NotBroughtBack(Refused):
    """A stream has the snapshot, and its method does not take it up."""


class ReceiveTimeout(Refused):
    """The request did not arrive whole in time."""


class ModelRefused(Refused):
    """The model cannot be loaded anew, or what was read not take its place; the former answers."""


class TooLarge(Refused):
    """More bytes, pixels or images than a limit allows."""

    reason = "too_large"


class UnknownType(Refused):
    """A media type that is not taken."""

    reason = "type"


class OutOfRange(Refused):
    """Parsed, but the value cannot be used: a label, an option, a shape."""

    reason = "range"


class HeadTooLarge(Refused):
    """The request line and headers are longer than a head may be."""


class QueueFull(Refused):
    """The queue holds all that it may; `retry_after` says when there should be room."""

    reason = "full"


class TooManyStreams(Refused):
    """There is no place for another stream; `retry_after` says when the first may make room."""

    reason = "streams"


class PredictionFailed(Refused):
    """The model failed on this request; the others of its batch have their answers."""


class StateNotRemoved(Refused):
    """A stream is at the source, but its saved state is still in the folder."""


class UnknownCoding(Refused):
    """The body comes in a transfer coding that is not known (RFC 9112 §6.1)."""


class NotReady(Refused):
    """The service is loading, or draining before it stops."""

    reason = "draining"


class DeadlineExpired(Refused):
    """The deadline that came with the request passed; it was not run."""

    reason = "deadline"


_ANSWERS: dict[type[Refused], tuple[int, str]] = {
    Unreadable: (400, "Unreadable request"),
    Unauthorized: (401, "Unauthorized"),
    Forbidden: (403, "Forbidden"),
    NoModel: (404, "No such model"),
    NoSnapshot: (404, "No such snapshot"),
    SavedDoesNotFit: (404, "Saved stream does not fit"),
    ReceiveTimeout: (408, "Request timeout"),
    ModelRefused: (409, "Model not exchanged"),
    TooLarge: (413, "Too large"),
    UnknownType: (415, "Unsupported media type"),
    OutOfRange: (422, "Value out of range"),
    HeadTooLarge: (431, "Request header fields too large"),
    QueueFull: (429, "Queue full"),
    TooManyStreams: (429, "Too many streams"),
    PredictionFailed: (500, "Prediction failed"),
    NotBroughtBack: (500, "Not brought back"),
    StateNotRemoved: (500, "Saved state not removed"),
    UnknownCoding: (501, "Transfer coding not implemented"),
    NotReady: (503, "Not ready"),
    DeadlineExpired: (504, "Deadline expired"),
}
STATUS: dict[type[Refused], int] = {error: status for error, (status, _) in _ANSWERS.items()}
"""The HTTP status of each error."""
TITLE: dict[type[Refused], str] = {error: title for error, (_, title) in _ANSWERS.items()}
"""The `title` of each error in its problem document: the same for every occurrence."""
# Nginx's number for "the client closed the connection"; it is seen in metrics and logs only.
CLIENT_CLOSED_REQUEST = 499
