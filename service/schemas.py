"""What goes over the wire, in and out, with examples for /docs."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, FailFast, Field
from pydantic_core import ErrorDetails

from service.errors import OutOfRange
from ttc_core.interpolation import Interpolation

STREAM_PATTERN = r"^[A-Za-z0-9._:-]{1,64}$"
STREAM_NAME = re.compile(STREAM_PATTERN)
STREAM_WORDS = "a stream's name is 1 to 64 of A-Z a-z 0-9 . _ : -"
DEFAULT_STREAM = "default"
ALL_STREAMS = "*"
# In a query or a form: as in JSON. Python would take 1_0, +1, blanks and other scripts' digits too.
WRITTEN = {
    float: ("a number", re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")),
    int: ("a whole number", re.compile(r"-?(0|[1-9][0-9]*)")),
    bool: ("true or false", re.compile(r"true|false")),
}


def in_words(error: ErrorDetails) -> str:
    """What pydantic has against a value, without a pattern in it: only streams' names have one."""
    if error["type"] != "string_pattern_mismatch":
        return error["msg"]
    every = "" if error["ctx"]["pattern"] == STREAM_PATTERN else ", or * for all"
    return f"{STREAM_WORDS}{every}"


def check_written(name: str, value: str, *kinds: object) -> None:
    """Hold the text of a query's or a form's value against the widest of the kinds it may be of.

    Raises:
        OutOfRange: it is not written as JSON has it; texts may be written in any way.
    """
    what, form = next((WRITTEN[kind] for kind in WRITTEN if kind in kinds), ("", None))
    if form and not form.fullmatch(value):
        raise OutOfRange(f"{name} is {what}, written as in JSON; got {value[:40]!r}.")


# As it is told: nothing is below 0 by nothing.
Number = Annotated[float, AfterValidator(lambda number: number + 0.0)]


# The same of any kind: what is a count is whole.
Value = Annotated[int | float, AfterValidator(lambda number: number + 0)]


class EncodedImage(BaseModel):
    """One image of a JSON request."""

    model_config = ConfigDict(extra="forbid", strict=True)

    b64: str = Field(description="the image file in base64: JPEG, PNG, WebP, GIF or BMP")
    id: str | None = Field(None, max_length=128, description="echoed; a later label names it")
    label: int | None = Field(None, description="the true class, if known; counted, never learned")


class PredictRequest(BaseModel):
    """A JSON request: one or many images."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"images": [{"b64": "iVBORw0KGgo…", "id": "frame-1"}]}]},
    )

    images: Annotated[list[EncodedImage], FailFast()] = Field(min_length=1)


class LateLabel(BaseModel):
    """The true class of an image that was answered before."""

    model_config = ConfigDict(extra="forbid", strict=True)

    stream: str | None = Field(
        None, pattern=STREAM_PATTERN, description="the image's; None: the request's"
    )
    id: str = Field(max_length=128, description="that the image came with")
    label: int = Field(description="the true class; counted and weighed, never learned")


class FeedbackRequest(BaseModel):
    """A JSON request: labels that came later."""

    model_config = ConfigDict(extra="forbid", strict=True)

    labels: Annotated[list[LateLabel], FailFast()] = Field(min_length=1)


class NamedImage(BaseModel):
    """An image as a label names it."""

    stream: str
    id: str


class NotTaken(BaseModel):
    """Labels of one kind that did not count."""

    count: int
    images: list[NamedImage] = Field(description="whose they are, of the first hundred")


class FeedbackResponse(BaseModel):
    """What became of each label."""

    taken: int = Field(description="counted in the accuracy")
    weighed: int = Field(
        0,
        description="of those taken, what a guard weighed: of compared images of streams in memory",
    )
    unknown: NotTaken = Field(
        description="no image of late was answered under this id in its stream"
    )
    repeated: NotTaken = Field(description="the answer had this label already")
    contradicting: NotTaken = Field(description="the answer had another label, which stays")


class ClassScore(BaseModel):
    """A class with the probability the model gives it."""

    class_: Annotated[int, Field(alias="class", description="class index")]
    name: str
    confidence: float = Field(description="probability, 0 to 1")

    model_config = ConfigDict(populate_by_name=True)


class ImagePrediction(ClassScore):
    """The answer to one image; its class, name and confidence are those of the best class."""

    id: str | None
    top_k: list[ClassScore] = Field(description="the k best classes, best first")
    entropy: float = Field(description="of all classes' confidences, in nats, 0 to ln K")
    selected: bool = Field(description="whether the method learns from this image")
    mode: str = Field(
        "source",
        description="what answered: source (nothing adapts: the method, or --adapt never), "
        "adapting, settled (what has adapted, and with --adapt on-shift learns no more while the "
        "stream stays as it is), held (the source, since it is safer) or rolled_back (brought back "
        "to a good state of late)",
    )
    suspect: str | None = Field(
        None,
        description="black, white, blank, frozen, torn or noise where it looks like a faulty "
        "camera's; with --guard on nothing is learned from it",
    )
    shed: Literal["learning", "second_view"] | None = Field(
        None,
        description="what it went without since the queue stands: learning, or that and the "
        "second view; null with another --adapt than auto and on-shift",
    )


class PredictResponse(BaseModel):
    """The answers, in the order of the request."""

    stream: str
    method: str
    context: bool = Field(False, description="whether the images before had a say in the answers")
    version: int | list[int] = Field(
        description="optimizer steps taken before; a list, one an image, if cut over batches"
    )
    batch_size: int | list[int] = Field(description="images in the batch; a list likewise")
    model_digest: str | None = Field(
        None, description="of the weights that answered, all images: `model.digest` in /status"
    )
    predictions: list[ImagePrediction]


class Discarded(BaseModel):
    """What a reset threw away."""

    steps: int = 0
    pending_batches: int = 0
    labelled: int = Field(
        0,
        description="labelled answers that `truth` in /status counts no more; their ids stay known",
    )
    correct: int = Field(0, description="those of them that are right")


class SnapshotStatus(BaseModel):
    """A good state of a stream."""

    version: int = Field(description="optimizer steps taken then")
    images: int = Field(description="how many the stream had had")


class SnapshotsResponse(BaseModel):
    """What is kept of a stream to bring it back to, the oldest first."""

    stream: str
    snapshots: list[SnapshotStatus]
    unavailable: str | None = Field(
        None, description="why it cannot be brought back to them now; null: it can"
    )


class RollbackResponse(BaseModel):
    """A stream that was brought back."""

    stream: str
    version: int


class ResetResponse(BaseModel):
    """The streams that are at the source."""

    streams: list[str]
    known: bool = Field(
        True,
        description="false: nothing was known of it, in memory, saved or by a label, so that "
        "nothing was done; a name misspelt, or a stream that has sent nothing since its last reset",
    )
    discarded: Discarded
    kept_aside: int = Field(
        0,
        description="saved streams of former weights that were removed, too, as with * all are",
    )


class ReloadResponse(BaseModel):
    """The model as it was read anew. Digests are those of `model.digest` in /status."""

    changed: bool = Field(description="false: the weights are the same, and nothing moved")
    digest: str = Field(description="of the weights that answer now")
    former_digest: str = Field(description="of those that did before")
    streams_kept_aside: int | None = Field(
        0,
        description="of the former weights, in the state folder: they go on when those come back; "
        "null, as of the two below: not known, the log says why",
    )
    streams_dropped: int | None = Field(
        0, description="of the former weights, that were in memory and are not kept as they were"
    )
    streams_brought_back: int | None = Field(
        0, description="that these weights have in the state folder from before"
    )
    seconds: float = Field(0.0, description="that it took, from reading to the last stream's file")


class EstimateStatus(BaseModel):
    """An accuracy that no label told, 0 to 1, or a difference of two, -1 to 1."""

    accuracy: Number
    low: Number = Field(description="where a 90 % interval begins")
    high: Number = Field(description="where it ends")


class EstimatedAccuracy(BaseModel):
    """How much of a stream's latest answers is right, estimated without labels."""

    adapted: EstimateStatus = Field(description="of what is served, or would be were it not held")
    source: EstimateStatus = Field(description="of the source, on the same images")
    difference: EstimateStatus = Field(description="the first less the second")
    images_compared: int = Field(
        description="that both answered so far; it is of the last 200 of them"
    )


class StreamAct(BaseModel):
    """What was done with a stream."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    time: float = Field(description="seconds since 1970")
    action: str = Field(description="hold, release, roll_back or reset")
    reason: str = Field(
        description="suspicion, harm, gain or no_gain: the guard did it; by_hand: somebody had it "
        "done; failure: the method could not go on"
    )
    observed: bool = Field(False, description="told only, by --guard observe, and not done")
    evidence: dict[str, Value] = Field(
        {}, description="what led to it, by name; of a roll back by hand the version gone back to"
    )


# Of a time, in seconds since 1970.
Moment = Annotated[float, Field(ge=0, le=1e11)]
Count = Annotated[int, Field(ge=0, le=2**53)]
# What was done with a stream: so many are kept.
ACTS = 5


class ChangesMark(BaseModel):
    """A line of the log of changes."""

    model_config = ConfigDict(strict=True, frozen=True)

    writer: str = Field("", max_length=64, description="whose log; empty: the one process's")
    line: Count = Field(description="its number, from the first ever on")
    head: str = Field(pattern="^[0-9a-f]{64}$", description="its hash")


class ChangesHead(ChangesMark):
    """The last line of a log of changes that was certainly on disk."""

    closed: bool


class KeptOfStream(BaseModel):
    """What a stream's file keeps beside the method's state."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    # Whose it is: no two streams have the same file. None: a former version wrote it.
    stream: str | None = None
    images: Count = 0
    batches: Count = 0
    answers_from: Count = 0
    labelled: Count = 0
    correct: Count = 0
    suspects: dict[str, Count] = {}
    suspect: str | None = None
    suspect_since: Moment | None = None
    suspect_in_a_row: Count = 0
    # None: a former version wrote it.
    mode: str | None = None
    doubted_since: Moment | None = None
    held_since: Moment | None = None
    acts: Annotated[list[StreamAct], Field(max_length=ACTS)] = []
    # The end of the log of changes when the file was written.
    changes: ChangesMark | None = None


class DoubtedStatus(BaseModel):
    """A saved stream that was doubted when it was saved, and is once it is loaded; as in
    `StreamStatus`."""

    mode: Literal["held", "adapting"] = Field(
        description="held, or adapting where the guard does not hold"
    )
    images: int
    doubted_since: float
    held_since: float | None = Field(description="null, too, where it has not been answered since")
    guard: list[StreamAct]


class EnvelopeStatus(BaseModel):
    """What adaptation may change."""

    digest: str = Field(description="of its clauses: tells envelopes apart")
    built_in: bool
    clauses: dict[str, Value | list[str]] = Field(description="each by its name in a file")


class StreamEnvelope(BaseModel):
    """Steps of a stream that would have gone beyond the envelope, by clause."""

    cut: dict[str, int] = Field({}, description="to the envelope's edge")
    dropped: dict[str, int] = {}


class StreamStatus(BaseModel):
    """One camera's stream."""

    version: int = Field(description="optimizer steps since the start or the last reset")
    images: int
    batches: int
    pending_batches: int
    drift: Number = Field(description="relative distance of the adapted parameters to the source's")
    second_view_off: bool = Field(
        False, description="mirror images mean something else here, and are left out"
    )
    mode: str = Field("adapting", description="how the next image is answered, as an answer's mode")
    doubted_since: float | None = Field(
        None,
        description="since when the guard suspects or has seen harm, so that the source answers, "
        "or would if the guard did not only observe; in seconds since 1970",
    )
    held_since: float | None = Field(
        None, description="since when the source answers, in seconds since 1970"
    )
    estimated_accuracy: EstimatedAccuracy | None = Field(
        None, description="without labels; null before the guard has compared an image"
    )
    guard: list[StreamAct] = Field(
        [], description="what was done of late, by the guard or by hand, the oldest first"
    )
    envelope: StreamEnvelope = Field(
        default_factory=StreamEnvelope, description="since the start or the last reset"
    )
    details: dict[str, Value] = Field(
        {}, description="what the method shows of itself besides, by name"
    )
    suspect: str | None = Field(
        None, description="the kind of its latest faulty frame; None: they are ordinary"
    )
    suspect_since: float | None = Field(
        None,
        description="since when the camera is at fault, whatever the kind, in seconds since 1970",
    )
    suspect_in_a_row: int = Field(
        0, description="faulty images, of any kind, that came last, no other between them"
    )
    suspects: dict[str, int] = Field(
        {}, description="images that looked like a faulty camera's, by kind, of all"
    )
    silent: bool = Field(False, description="it has sent nothing for much longer than is its habit")
    silent_since: float | None = Field(
        None, description="when its last request was answered, in seconds since 1970, if it is"
    )


class StreamTruth(BaseModel):
    """What labels say of one camera's stream."""

    labelled: int = Field(0, description="answers whose label came, with the image or later")
    correct: int = Field(0, description="those of them that are right")


class ModelStatus(BaseModel):
    """The model that is served."""

    spec: str
    digest: str | None = Field(
        None, description="a hash of weights and preprocessing: tells models of one spec apart"
    )
    loaded: float | None = Field(
        None, description="since when these weights answer, in seconds since 1970"
    )
    code: str | None = Field(None, description="a hash of its code, if that is the user's own")
    classes: int
    class_names: list[str]
    size: int | None
    crop: int | None
    interpolation: Interpolation = Field("bilinear", description="how images are resized")
    precision: str = Field("float32", description="what its layers compute in, as torch names it")
    split: str = Field(description="the layer that is the head h of f = h∘g")
    adapted_parameters: int
    accuracy: float | None = Field(description="on clean test data, if the weights state it")


class SheddingStatus(BaseModel):
    """What is given up while the queue stands.

    Evidence is `load` (from 1 on learning is, from 2 on the second view; below 0.5 for five seconds
    one comes back), and what makes it: `waited_seconds` of who has waited longest and let others
    go before, and how many `images_more` wait than within the second, beside what is allowed of
    each; and `images_waiting`.
    """

    what: Literal["learning", "second_view"] = Field(description="as an answer's shed")
    since: float = Field(description="when learning was given up, in seconds since 1970")
    evidence: dict[str, Value] = Field(description="what led to the last step, up or back")
    now: dict[str, Value] = Field(description="the same, as it is now")


class SavedUnfit(BaseModel):
    """Saved streams that do not fit what is served."""

    streams: int = 0
    reasons: dict[str, int] = Field(
        {},
        description="how many by why: method tent, not ttc; lr=0.1, not 0.001; the ten most common",
    )


class ReplicaStatus(BaseModel):
    """One replica of the service; events and metrics have its name. Its log of changes has that of
    its place, changes.writer, which the replica that comes after it takes over."""

    name: str
    host: str
    process: int
    started: float
    ready: bool
    streams: int = Field(description="in memory")
    owned: int = Field(description="streams that are its own, in memory or saved")
    queue_images: int
    changes: ChangesMark | None = Field(None, description="the end of its own log of changes")
    shedding: SheddingStatus | None = Field(None, description="what its images go without now")


class StatusResponse(BaseModel):
    """All that a person or a page needs to see what the service does."""

    ready: bool
    idle: bool = Field(description="nothing is queued, and no batch is predicted or adapted")
    shedding: SheddingStatus | None = Field(
        None, description="what images go without now; null: nothing is given up"
    )
    model: ModelStatus
    method: str
    settings: dict[str, Any] = Field(
        description="the method's hyperparameters, and code_digest if its code is the user's own; "
        "the server's, and the sources of these, as `ttc config --json` has them"
    )
    calibrated: Literal["record", "guard", "none"] = Field(
        "none",
        description="who goes by the model's calibration record: record: the probabilities told, "
        "and the guard; guard: the guard's estimates alone; none: nobody",
    )
    record_temperature: float | None = Field(None, description="that record's, if somebody does")
    envelope: EnvelopeStatus | None = Field(
        None, description="that holds; null: none, with --paper, or what is served adapts nothing"
    )
    device: str
    streams: dict[str, StreamStatus] = Field(description="those in memory")
    saved_streams: int = Field(description="others in the state folder, loaded when asked for")
    saved_doubted: dict[str, DoubtedStatus] = Field(
        {},
        description="those of them that are doubted, at most the thousand of which it has been "
        "longest; after a start, files are looked at one after another, some thousands a second",
    )
    saved_unfit: SavedUnfit = Field(
        default_factory=SavedUnfit,
        description="those of them that are none of what is served: each is set aside, as "
        "NAME.rejected, and starts at the source when its images come; found as saved_doubted is",
    )
    changes: ChangesMark | None = Field(
        None,
        description="the end of the log of changes, as far as it is on disk; null: there is none, "
        "or with --ray: each replica has its own, in replicas",
    )
    truth: dict[str, StreamTruth] = Field(
        {},
        description="of streams with labels since the start or their last reset by hand or failure",
    )
    counters: dict[str, Value]
    events: list[dict[str, Any]] = Field(
        description="the latest starts, resets, skips and failures"
    )
    versions: dict[str, str]
    replicas: list[ReplicaStatus] | None = Field(
        None, description="with --ray: those that live; null: this is one process"
    )
    late: list[str] | None = Field(
        None, description="names of replicas that did not answer when asked for this"
    )


class Health(BaseModel):
    """Whether the process lives, or is ready."""

    status: str


class Problem(BaseModel):
    """RFC 9457: what was wrong with a request."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "about:blank",
                    "title": "Cannot be read",
                    "status": 400,
                    "detail": "Image 3 of 16: The PNG image is damaged or cut short: its pixels "
                    "cannot be decoded. None of the request's images was processed.",
                    "request_id": "0d5e3f",
                    "index": 2,
                }
            ]
        }
    )

    type: str = "about:blank"
    title: str
    status: int
    detail: str = Field(description="what was wrong, what is accepted")
    request_id: str
    index: int | None = Field(None, description="the image at fault, counted from 0")
