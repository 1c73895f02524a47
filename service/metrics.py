"""Every metric, declared once. Names, units and labels are those of docs/metrics.md."""

import platform
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from typing import Protocol

import numpy as np
import torch
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.errors import CLIENT_CLOSED_REQUEST, STATUS
from service.schemas import ChangesMark
from service.shedding import STEPS, Shed
from ttc_core.frames import KINDS
from ttc_core.methods import Adaptation, HostPrediction

# A time of creation beside every counter: a fifth of the text, and nobody asks for it.
disable_created_metrics()  # type: ignore[no-untyped-call]

STAGES = ("decode", "queue", "forward", "adapt", "encode")
BATCH_REASONS = ("full", "wait", "drain")
# Sent nothing; did not finish a request; did not take its answer; made room for another.
CLOSE_REASONS = ("silent", "slow", "unread", "crowded")
# A method of a user's own may have others: they are "other".
SKIP_REASONS = ("none_selected", "non_finite", "shed", "settled", "suspect", "failed", "other")
RESET_CAUSES = ("request", "failure", "guard")
ROLLBACK_CAUSES = ("request", "guard")
# What a guard does, and why.
GUARD_ACTIONS = tuple(
    [(action, "harm") for action in ("hold", "roll_back", "reset")]
    + [("hold", "suspicion"), ("release", "suspicion"), ("release", "gain"), ("reset", "no_gain")]
)
OBSERVED = ("true", "false")
# What an envelope does to steps: each verdict with the clauses that may come to it.
ENVELOPE_VERDICTS = {
    "cut": (
        *("parameters", "drift", "largest_change", "image_in_statistics"),
        "image_in_step",
    ),
    "dropped": ("parameters", "steps_per_1000_images", "worse_than_source"),
}
EVICTION_REASONS = ("saved", "expired")
LOSS_TERMS = ("entropy", "similarity", "total")
SAVE_OUTCOMES = ("saved", "failed")
ANSWERS = ("right", "wrong")
ESTIMATED = ("adapted", "source")
LOAD_OUTCOMES = ("loaded", "unchanged", "refused")
FEEDBACK_OUTCOMES = ("taken", "unknown", "repeated", "contradicting")
REJECTION_REASONS = tuple(sorted({error.reason for error in STATUS if error.reason}))
ACCURACY_WINDOW = 500
DOMINANCE_WINDOW = 500
# Of fewer answers the most frequent class says nothing.
FEWEST_ANSWERS = 100
# The event loop's lag is the worst of so many measurements, so that no scrape misses it.
LAGS_KEPT = 120
# What names end in, _total aside: OpenMetrics tells it as the unit.
UNITS = ("seconds", "bytes", "nats", "ratio", "images", "batches", "requests", "steps")
# Beyond this many classes a series a class would be too many.
MOST_CLASS_LABELS = 100
# Streams that are named while they are held: whoever is woken needs the worst, not all.
MOST_HELD_LABELS = 5
# Of a hash: a sample holds whole numbers of 53 bits.
HEAD_DIGITS = 13

SECONDS = (
    *(0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128),
    *(0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 100, 128, 256, 512)
CONFIDENCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)


class Metrics:
    """The service's metrics in a registry of their own.

    Args:
        classes: K of the model; the buckets of entropy end at ln K.
        model: labels of `ttc_model_info`.
        max_queue: images that may wait.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        classes: int,
        model: dict[str, str],
        max_queue: int = 0,
    ) -> None:
        self.registry = registry
        self._classes = classes

        def counter(name: str, text: str, labels: Iterable[str] = ()) -> Counter:
            return Counter(name, text, list(labels), unit=unit_of(name), registry=registry)

        def gauge(name: str, text: str, labels: Iterable[str] = ()) -> Gauge:
            return Gauge(name, text, list(labels), unit=unit_of(name), registry=registry)

        def histogram(
            name: str, text: str, buckets: Iterable[float], labels: Iterable[str] = ()
        ) -> Histogram:
            return Histogram(
                name,
                text,
                list(labels),
                unit=unit_of(name),
                buckets=tuple(buckets),
                registry=registry,
            )

        # Traffic
        self.ready = gauge(
            "ttc_ready", "1 while requests are taken and the device gets on, 0 otherwise."
        )
        self.requests = counter(
            "ttc_http_requests_total", "HTTP requests answered.", ("route", "method", "code")
        )
        self.request_seconds = histogram(
            "ttc_http_request_duration_seconds",
            "Time from a request's first byte to its answer's last.",
            SECONDS,
            ("route",),
        )
        self.requests_in_progress = gauge(
            "ttc_http_requests_in_progress", "HTTP requests being answered."
        )
        self.connections_closed = counter(
            "ttc_connections_closed_total",
            "Connections that the service ended before their client did, by reason.",
            ("reason",),
        )
        self.live_readers = gauge(
            "ttc_live_readers", "Connections that GET /events sends frames to, pages among them."
        )
        self.live_dropped = counter(
            "ttc_live_dropped_frames_total",
            "Frames of GET /events that readers were too slow for, and lost.",
        )
        self.images = counter("ttc_images_total", "Images answered.")
        self.rejected = counter(
            "ttc_rejected_images_total", "Images refused, by reason.", ("reason",)
        )
        self.cancelled = counter(
            "ttc_cancelled_images_total", "Images whose client went away before their turn."
        )
        self.stage_seconds = histogram(
            "ttc_stage_duration_seconds",
            "Time of a request (decode, queue, encode) or batch (forward, adapt) in each stage.",
            SECONDS,
            ("stage",),
        )
        self.queue_images = gauge("ttc_queue_images", "Images waiting for their batch.")
        self.queue_limit = gauge("ttc_queue_limit_images", "Images that may wait.")
        self.queue_limit.set(max_queue)
        self.queue_oldest_age = gauge(
            "ttc_queue_oldest_age_seconds", "Age of the oldest waiting request; 0 for none."
        )
        self.batch_age = gauge(
            "ttc_batch_age_seconds", "How long the device has been at its batch; 0 for none."
        )
        self.batch_images = histogram("ttc_batch_images", "Images in a batch.", BATCH_SIZES)
        self.batches = counter("ttc_batches_total", "Batches, by what closed them.", ("reason",))
        self.loop_lag = gauge(
            "ttc_event_loop_lag_seconds",
            "How late the event loop ran a timer, the worst of the last 30 s.",
        )
        self._lags: deque[float] = deque(maxlen=LAGS_KEPT)

        # Adaptation
        most = float(np.log(classes))
        self.entropy = histogram(
            "ttc_entropy_nats",
            "Entropy of each answer's class probabilities, 0 to ln K.",
            [round(most * share, 4) for share in np.linspace(0.05, 1, 20)],
        )
        self.entropy_limit = gauge(
            "ttc_entropy_limit_nats", "ln K: the entropy of an answer that tells nothing."
        )
        self.entropy_limit.set(most)
        self.confidence = histogram(
            "ttc_confidence_ratio", "Probability of each answer's best class.", CONFIDENCES
        )
        self.selected = counter("ttc_selected_images_total", "Images selected to be learned from.")
        self.considered = counter(
            "ttc_considered_images_total", "Images that a selecting method could have selected."
        )
        self.loss = gauge(
            "ttc_loss", "Loss of the last batch learned from, in nats; NaN for none.", ("term",)
        )
        self.steps = counter("ttc_optimizer_steps_total", "Optimizer steps, all streams.")
        self.pending_batches = gauge(
            "ttc_pending_batches", "Batches whose gradients wait for a step, all streams."
        )
        self.skipped = counter(
            "ttc_adaptation_skipped_total", "Batches nothing was learned from.", ("reason",)
        )
        self.shed = counter(
            "ttc_shed_images_total",
            "Images answered while the queue stood, by the last that was given up for it.",
            ("what",),
        )
        self.shedding = gauge(
            "ttc_shedding", "1 while it is given up since the queue stands, 0 otherwise.", ("what",)
        )
        self.last_step = gauge(
            "ttc_last_step_timestamp_seconds", "Unix time of the last optimizer step; 0 for none."
        )
        self.drift = gauge(
            "ttc_parameter_drift_ratio",
            "Distance of the adapted parameters to the source's over their norm, worst stream.",
        )
        self.without_second_view = gauge(
            "ttc_streams_without_second_view",
            "Streams in memory whose mirror images mean something else, and are left out.",
        )
        self.suspects = counter(
            "ttc_suspect_images_total",
            "Images answered that look like a faulty camera's, by kind; 0 with --guard off.",
            ("kind",),
        )
        self.silent_streams = gauge(
            "ttc_silent_streams",
            "Streams that have sent nothing for much longer than is their habit.",
        )
        self.predictions = (
            counter("ttc_predictions_total", "Answers, by class.", ("class",))
            if classes <= MOST_CLASS_LABELS
            else None
        )
        self.dominant_class = gauge(
            "ttc_dominant_class_ratio",
            f"Share of the most frequent class in the last {DOMINANCE_WINDOW} answers; NaN before "
            f"the first {FEWEST_ANSWERS}.",
        )
        self.dominant_class.set(float("nan"))
        self.last_reset = gauge(
            "ttc_last_reset_timestamp_seconds", "Unix time of the last reset; 0 for none."
        )
        self.resets = counter("ttc_resets_total", "Streams put back to the source.", ("cause",))
        self.rollbacks = counter(
            "ttc_rollbacks_total", "Streams brought back to a snapshot.", ("cause",)
        )
        self.guard_actions = counter(
            "ttc_guard_actions_total",
            'What guards did, or with observed="true" would have done, by action and reason.',
            ("action", "reason", "observed"),
        )
        self.envelope_steps = counter(
            "ttc_envelope_steps_total",
            "Steps that would have gone beyond the envelope, by clause: cut, or dropped.",
            ("clause", "verdict"),
        )
        self.doubted = gauge(
            "ttc_doubted_streams",
            "Streams that the source answers, or would if the guard did not only observe, in "
            "memory or saved.",
        )
        self.held = gauge(
            "ttc_held_streams", "Streams that the source answers, in memory or saved."
        )
        self.held_since = _LongestHeld(
            "Unix time since when the source answers a stream, of the "
            f"{MOST_HELD_LABELS} of which it has been longest."
        )
        registry.register(self.held_since)
        self.streams = gauge("ttc_streams", "Streams in memory that adapt apart.")
        self.stream_bytes = gauge("ttc_stream_state_bytes", "Memory of the streams' states.")
        self.evicted = counter(
            "ttc_streams_evicted_total", "Streams that made room for others.", ("reason",)
        )

        self.saves = counter("ttc_saves_total", "Streams written to their file.", ("outcome",))
        self.unsaved_streams = gauge(
            "ttc_unsaved_streams", "Streams that have changed since their file was written."
        )
        self.unsaved_age = gauge(
            "ttc_unsaved_age_seconds", "Age of the oldest change that no file has; 0 for none."
        )

        self.changes = _Changes()
        registry.register(self.changes)

        # Truth
        self.labelled = counter(
            "ttc_labelled_images_total", "Answers whose label came, with the image or later."
        )
        self.correct = counter("ttc_correct_images_total", "Labelled images answered right.")
        self.labelled_confidence = histogram(
            "ttc_labelled_confidence_ratio",
            "Probability of the best class of answers whose label came, by what it said of them.",
            CONFIDENCES,
            ("answer",),
        )
        self.window_accuracy = gauge(
            "ttc_window_accuracy_ratio",
            f"Accuracy over the last {ACCURACY_WINDOW} labelled images; NaN before the first.",
        )
        self.window_accuracy.set(float("nan"))
        self.estimated_accuracy = gauge(
            "ttc_estimated_accuracy_ratio",
            "Accuracy of late without labels, of what is adapted and of the source, all streams in "
            "memory by the images compared of late; NaN for none.",
            ("answers",),
        )
        self.feedback_labels = counter(
            "ttc_feedback_labels_total", "Labels that came later, by outcome.", ("outcome",)
        )
        self.known_ids = gauge(
            "ttc_feedback_known_ids", "Answers that a label may still come for, by its image's id."
        )

        build = Info("ttc_build", "Versions of the program and its main parts.", registry=registry)
        build.info(versions())
        self._model = Info("ttc_model", "The model that is served.", registry=registry)
        self.show_model(model)
        self.model_loaded = gauge(
            "ttc_model_loaded_timestamp_seconds", "Unix time since when its weights answer."
        )
        self.model_loads = counter(
            "ttc_model_loads_total", "Times that the model was to be loaded anew.", ("outcome",)
        )
        ProcessCollector(registry=registry)
        self._present_from_the_start()
        # Looked up once: each request is observed in several.
        self._stages = {stage: self.stage_seconds.labels(stage) for stage in STAGES}
        predictions = self.predictions
        self._answered = (
            [predictions.labels(str(index)) for index in range(classes)] if predictions else []
        )

    def _present_from_the_start(self) -> None:
        """Make every label value exist, so that a rate over it never misses its first event."""
        for metric, values in (
            (self.rejected, REJECTION_REASONS),
            (self.stage_seconds, STAGES),
            (self.connections_closed, CLOSE_REASONS),
            (self.batches, BATCH_REASONS),
            (self.loss, LOSS_TERMS),
            (self.skipped, SKIP_REASONS),
            (self.shed, STEPS),
            (self.shedding, STEPS),
            (self.suspects, KINDS),
            (self.resets, RESET_CAUSES),
            (self.rollbacks, ROLLBACK_CAUSES),
            (self.evicted, EVICTION_REASONS),
            (self.saves, SAVE_OUTCOMES),
            (self.feedback_labels, FEEDBACK_OUTCOMES),
            (self.labelled_confidence, ANSWERS),
            (self.estimated_accuracy, ESTIMATED),
            (self.model_loads, LOAD_OUTCOMES),
        ):
            for value in values:
                metric.labels(value)
        for action in GUARD_ACTIONS:
            for observed in OBSERVED:
                self.guard_actions.labels(*action, observed)
        for verdict, clauses in ENVELOPE_VERDICTS.items():
            for clause in clauses:
                self.envelope_steps.labels(clause, verdict)
        for each in ESTIMATED:
            self.estimated_accuracy.labels(each).set(float("nan"))
        for term in LOSS_TERMS:
            self.loss.labels(term).set(float("nan"))  # no loss is not a loss of 0
        self.request_seconds.labels("/predict")
        for code in (200, CLIENT_CLOSED_REQUEST, *STATUS.values()):
            self.requests.labels("/predict", "POST", str(code))
        if self.predictions is not None:
            for index in range(self._classes):
                self.predictions.labels(str(index))

    def show_model(self, labels: dict[str, str]) -> None:
        """Tell of the model that is served."""
        self._model.info(labels)

    def batch_closed(self, reason: str, images: int) -> None:
        """Count a batch and what closed it."""
        self.batches.labels(reason).inc()
        self.batch_images.observe(images)

    def lagged(self, seconds: float) -> None:
        """Note how late the event loop came to a timer."""
        self._lags.append(seconds)
        self.loop_lag.set(max(self._lags))

    def spent(self, stage: str, seconds: float) -> None:
        """Note how long a request or a batch was in one of STAGES."""
        self._stages[stage].observe(seconds)

    def waited(self, seconds: float) -> None:
        """Note how long a request waited for its batch."""
        self.spent("queue", seconds)

    def count_answers(self, answers: HostPrediction, *, selects: bool) -> None:
        """Count a batch's answers.

        Args:
            selects: whether `answers.selected` says what is learned from.
        """
        predicted = answers.predicted
        self.images.inc(len(predicted))
        for kind in filter(None, answers.suspects):
            self.suspects.labels(kind).inc()
        for entropy in answers.entropy:
            self.entropy.observe(float(entropy))
        for confidence in answers.probabilities.max(axis=1):
            self.confidence.observe(float(confidence))
        if self._answered:
            for index, count in Tally(predicted.tolist()).items():
                self._answered[index].inc(count)
        if selects:
            self.considered.inc(len(predicted))
            self.selected.inc(int(answers.selected.sum()))

    def count_shed(self, shed: Iterable[Shed | None]) -> None:
        """Count images by what they went without."""
        for what in filter(None, shed):
            self.shed.labels(what).inc()

    def count_confidence(self, confidence: float, *, right: bool) -> None:
        """Count how sure an answer was that is known to be right or wrong."""
        self.labelled_confidence.labels("right" if right else "wrong").observe(confidence)

    def count_adaptation(self, outcome: Adaptation) -> None:
        """Count what became of a batch after it was answered."""
        if outcome.skipped is not None:
            known = outcome.skipped in SKIP_REASONS
            self.skipped.labels(outcome.skipped if known else "other").inc()
        if outcome.stepped:
            self.steps.inc()
            self.last_step.set_to_current_time()
        for term, value in (
            ("entropy", outcome.entropy),
            ("similarity", outcome.similarity),
            ("total", outcome.loss),
        ):
            if value is not None:
                self.loss.labels(term).set(value + 0.0)  # no -0.0

    def count_reset(self, cause: str) -> None:
        """Count a stream put back to the source."""
        self.resets.labels(cause).inc()
        self.last_reset.set_to_current_time()

    def counters(self) -> dict[str, float]:
        """The totals without labels, by their names without the prefix.

        Of the times of stages the one that no answer tells, since it comes behind its own:
        `adapt_seconds_total`.
        """
        found = {}
        for family in self.registry.collect():
            for sample in family.samples:
                own = sample.name.startswith("ttc_")
                if family.type == "counter" and own and not sample.labels:
                    found[sample.name.removeprefix("ttc_")] = _whole(sample.value)
                elif (sample.name, sample.labels) == _ADAPTING:
                    found["adapt_seconds_total"] = sample.value
        return found


def _whole(value: float) -> float:
    """A count as a whole number, as far as it is one."""
    return int(value) if float(value).is_integer() else value


_ADAPTING = ("ttc_stage_duration_seconds_sum", {"stage": "adapt"})


class _LongestHeld(Collector):
    """A series for each of a few streams: labels are bounded, however many are held."""

    def __init__(self, text: str) -> None:
        self._text = text
        # The streams that are held, and since when, in seconds since 1970.
        self.streams: Callable[[], Mapping[str, float]] = dict

    def collect(self) -> Iterable[Metric]:
        held = GaugeMetricFamily(
            "ttc_held_stream_timestamp_seconds", self._text, labels=["stream"], unit="seconds"
        )
        longest = sorted(self.streams().items(), key=lambda each: each[1])
        for stream, since in longest[:MOST_HELD_LABELS]:
            held.add_metric([stream], since)
        yield held


class ChangesTold(Protocol):
    """What a log of changes tells of itself: its end, and how many lines are missing."""

    lost: int

    @property
    def head(self) -> ChangesMark | None: ...


class _Changes(Collector):
    """The end of the log of changes: the number of a line, and its hash as another number.

    They are of one line at one moment, and two series however long the log grows.
    """

    def __init__(self) -> None:
        self._told: ChangesTold | None = None

    def of(self, told: ChangesTold) -> None:
        """Tell of this log from now on."""
        self._told = told

    def collect(self) -> Iterable[Metric]:
        head = None if self._told is None else self._told.head
        line = 0 if head is None else head.line
        number = 0 if head is None else int(head.head[:HEAD_DIGITS], 16)
        yield GaugeMetricFamily(
            "ttc_changes_line", "Lines of the log of changes that are on disk.", line
        )
        yield GaugeMetricFamily(
            "ttc_changes_head",
            f"The last of them: the first {HEAD_DIGITS} hex digits of its hash, as a number.",
            number,
        )
        yield CounterMetricFamily(
            "ttc_changes_lost_total",
            "Lines of the log of changes that could not be written.",
            0 if self._told is None else self._told.lost,
        )


def total(metric: Counter | Gauge, **labels: str) -> float:
    """The sum over a metric's series, of those with these labels."""
    return sum(
        sample.value
        for family in metric.collect()
        for sample in family.samples
        if labels.items() <= sample.labels.items()
    )


def distribution(*series: Histogram) -> tuple[list[int], float]:
    """Of one series or several: how many were at most each bound, the last of all; their sum."""
    samples = [each for one in series for family in one.collect() for each in family.samples]
    counts = Tally[str]()
    for each in samples:
        if each.name.endswith("_bucket"):
            counts[each.labels["le"]] += int(each.value)
    return list(counts.values()), sum(e.value for e in samples if e.name.endswith("_sum"))


def unit_of(name: str) -> str:
    """The unit that a metric's name ends in, or nothing."""
    stem = name.removesuffix("_total")
    return next((unit for unit in UNITS if stem.endswith(f"_{unit}")), "")


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    return {
        "service": version("ttc-service"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
