"""What `GET /events` sends: a `state`, then a `tick` a second. Times are seconds since 1970."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from service.schemas import EstimateStatus, Number, StreamAct, StreamTruth


class LiveEstimate(BaseModel):
    """How much of a stream's latest answers is right, estimated without labels."""

    adapted: EstimateStatus = Field(description="of what is served, or would be were it not held")
    source: EstimateStatus = Field(description="of the source, on the same images")
    gain: EstimateStatus = Field(description="the first less the second")


class LiveRow(BaseModel):
    """One camera's stream; more of it is in /status, under the same names."""

    name: str
    in_memory: bool = Field(
        description="false: it is saved and doubted, or silent and no more in memory; then what "
        "its file or its habit does not tell is null"
    )
    last_image: float | None = Field(description="when its last request was answered")
    images: int | None
    version: int | None
    drift: Number | None
    mode: str | None = Field(description="source, adapting, settled, held or rolled_back")
    doubted_since: float | None
    held_since: float | None
    silent_since: float | None
    suspect: str | None = Field(description="the kind of its latest faulty frame, while at fault")
    suspect_since: float | None
    suspects: dict[str, int] = Field(description="faulty frames by kind, of the kinds that came")
    estimate: LiveEstimate | None
    truth: StreamTruth | None
    guard: StreamAct | None = Field(description="what was done last, by the guard or by hand")
    trouble: Literal[0, 1, 2, 3] = Field(
        description="3: held, or its camera fails now; 2: doubted, silent, or faulty frames of "
        "late; 1: rolled back, or the estimate has it below the source; 0: none"
    )
    why: str | None = Field(description="the trouble in a sentence")


class LiveCounters(BaseModel):
    """Totals since the start, which only grow: rates are differences of two frames'."""

    images: int
    rejected: int
    cancelled: int
    labelled: int
    correct: int
    selected: int
    considered: int = Field(description="of which so many were selected")
    steps: int
    suspects: int
    entropy_sum: float = Field(description="of the answers' entropies, in nats")
    entropy_count: int
    request_seconds_buckets: list[int] = Field(
        description="requests for answers that took at most each of `latency_bounds`; all"
    )
    guard_actions: int = Field(description="without those that a guard only observed")
    resets: int
    rollbacks: int


class LiveGauges(BaseModel):
    """How things are now."""

    ready: bool
    queue_images: int
    drift: Number = Field(description="of the stream that is farthest from the source")
    streams: int = Field(description="in memory")
    learning: int = Field(description="those of them whose images teach")
    held: int
    doubted: int
    silent: int
    estimated_adapted: float | None = Field(
        description="accuracy, 0 to 1, over the streams in memory that are not held; "
        "`ttc_estimated_accuracy_ratio` is of all"
    )
    estimated_source: float | None = Field(description="of the source, on the same images")
    window_accuracy: float | None = Field(description="over the last 500 labels")


class LiveModel(BaseModel):
    """The model that is served."""

    name: str
    digest: str | None
    classes: int


class LiveAsks(BaseModel):
    """For what the service asks for a token."""

    predict: bool
    control: bool


class LiveState(BaseModel):
    """All there is to show: the first frame, and the next one for whoever lost some."""

    event: Literal["state"] = "state"
    time: float
    started: float = Field(
        description="since when this process is ready; another: it was restarted"
    )
    version: str
    page: str = Field(
        "", description="changes with the live page: what was loaded before is old then"
    )
    model: LiveModel
    method: str
    adapt: str
    guard: str
    asks: LiveAsks
    latency_bounds: list[float] = Field(description="in seconds")
    interval: float = Field(description="seconds between points of `history`")
    history: dict[str, list[Any]] = Field(
        description="of the last hour: `time`, and what each counter and gauge was then"
    )
    counters: LiveCounters
    gauges: LiveGauges
    events: list[dict[str, Any]] = Field(
        description="the latest, oldest first, as in /status: 200 of streams that come and go, of "
        "skipped batches and of connections, and 200 others"
    )
    streams: list[LiveRow] = Field(description="at most a thousand, those of most trouble first")
    left_out: int = Field(description="streams beyond that")


class LiveTick(BaseModel):
    """What has become of it a second later."""

    event: Literal["tick"] = "tick"
    time: float
    counters: LiveCounters
    gauges: LiveGauges
    events: list[dict[str, Any]] = Field(description="new ones")
    streams: list[LiveRow] = Field(description="those that have changed")
    gone: list[str] = Field(description="streams that are shown no more")
    left_out: int


LiveEvent = LiveState | LiveTick
