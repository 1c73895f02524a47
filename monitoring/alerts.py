"""When to wake somebody: alerts with their thresholds and reasons, and recording rules.

An alert says that the service does not answer, does not learn, or that learning does harm. Each
has a page under docker/runbooks.
"""

from dataclasses import dataclass
from typing import Any, Literal

import yaml

from monitoring.promql import METRICS as M
from monitoring.promql import PER_TARGET, Queries

RUNBOOKS = "docker/runbooks"
"""Where the pages lie; put the address in front at which your people read the repository."""

LEARNS = 'ttc_model_info{learns="yes"}'
BATCH_STATISTICS = 'ttc_model_info{statistics="batch"}'
SHORT, LONG, HOUR = Queries(window="5m"), Queries(window="15m"), Queries(window="1h")
TARGET = f"on ({', '.join(PER_TARGET)})"
PREDICT = 'route="/predict"'
SOURCES, ADAPTED = 'answers="source"', 'answers="adapted"'
NOT_WRITTEN = 'outcome="failed"'
# One collector has all of the log of changes: number and hash are of one moment.
CHANGES_LINE, CHANGES_LOST = "ttc_changes_line", "ttc_changes_lost_total"

# Thresholds, and why these.

FORGOTTEN_AFTER = "1d"
"""What has not answered for so long was taken away on purpose."""
ERROR_SHARE = 0.05
"""One request in twenty: a single client's bad luck is less, a broken model or device more."""
LATENCY_SECONDS = 1.0
"""A camera that sends an image a second wants its answer before the next. A batch of 100 takes
0.3 s on two CPU cores."""
REFUSED_SHARE = 0.01
"""429 is an answer; when one in a hundred gets it for minutes, images are lost for good."""
QUEUE_AGE_SECONDS = 2.0
"""The default queue of 1,000 images is 3 s of work on two CPU cores: it is most of the way full."""
SHED_SHARE = 0.5
"""Half of an hour's images: a flood of minutes is what shedding is for, and ends. Where most images
of hours teach nothing, a new condition is not learned, and nobody is refused who would tell."""
LOOP_LAG_SECONDS = 0.25
"""The loop reads and answers all requests; late by this, it adds this to each of them."""
CERTAIN_SHARE = 0.1
"""Of ln K. LOG.md (Signals of a collapse): healthy streams 0.12 to 0.68, a collapsed one 0.06 and
falling."""
DOMINANT_AND_CERTAIN = 0.6
"""A sharp network is certain of clear images, and right: that is a collapse only if few classes
are left. Healthy streams measured up to 0.39, a collapsed one 1."""
UNCERTAIN_SHARE = 0.75
"""Of ln K. Healthy streams measured up to 0.68, in fog; images of one class only 0.79 to 0.91."""
DOMINANT_SHARE = 0.9
"""Nine answers in ten are one class. Healthy streams of ten classes measured up to 0.61, in fog."""
ACCURACY_DROP = 0.10
"""Ten points below the mean of the six hours before."""
FEWEST_LABELS = 400
"""In fifteen minutes. By chance alone an accuracy of 105 labels falls by ten points every other
day, one of 450 never did in a simulation of months."""
BASELINE_RECORDS = 60
"""Half an hour of records, before there is anything to fall from."""
FEWEST_ANSWERS = 100
"""In fifteen minutes: a single unclear image is nothing to ring for."""
STALLED_IMAGES = 1000
"""Images a stream that were selected to be learned from, without a step: TTC steps every 200 of
all, the default every 50, the other methods every batch. On a stream of few classes the default
selects none, and is right."""
DRIFT = 1.0
"""As far as the source's parameters are long. TTC moves about 0.02 in 2,000 images (LOG.md)."""
SMALL_BATCH = 16
"""Images. Batch statistics of fewer cost points: NORM 62 % at 100, 59 % at 16, 14 % at 1."""
HELD_SECONDS = 600
"""A stream that was harmed for a moment has been released by then; this one has a cause that stays.
It is answered, by the source."""
ESTIMATED_HARM = 0.25
"""Points that the guard, too, leaves the estimate to be wrong by (`SLACK` in ttc_core/guard)."""
LOST_WITHIN, CUT_WITHIN = "1h", "1d"
"""A line of the log of changes that is lost is lost for good, and its number never falls: whoever
looks an hour later, or a day, is still to see it."""
SUSPECT_SHARE = 0.01
"""One image in a hundred, of one kind: one camera of a hundred has failed. Of ordinary images at
most one in a thousand is suspect."""


@dataclass(frozen=True)
class Alert:
    """One alert.

    Attributes:
        critical: somebody is to be woken; else it can wait for the morning.
        lasting: for how long the expression must hold.
        summary: what is wrong, in a line.
        description: the same with the value, and what follows.
    """

    name: str
    expression: str
    lasting: str
    critical: bool
    summary: str
    description: str

    @property
    def severity(self) -> Literal["critical", "warning"]:
        return "critical" if self.critical else "warning"

    def rule(self) -> dict[str, Any]:
        """As a rules file has it."""
        return {
            "alert": self.name,
            "expr": self.expression,
            "for": self.lasting,
            "labels": {"severity": self.severity},
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "runbook_url": f"{RUNBOOKS}/{self.name}.md",
            },
        }


@dataclass(frozen=True)
class Record:
    """An expression that is kept under a name, since what uses it looks far back."""

    name: str
    expression: str

    def rule(self) -> dict[str, Any]:
        """As a rules file has it."""
        return {"record": self.name, "expr": self.expression}


ACCURACY = Record(
    "instance:ttc_accuracy:ratio_15m",
    f"{LONG.increase(M.correct)} / ({LONG.increase(M.labelled)} >= {FEWEST_LABELS})",
)
LATENCY = Record(
    "instance:ttc_predict_latency_seconds:p99_5m",
    SHORT.quantile(0.99, M.request_seconds, PREDICT),
)
RECORDS = (ACCURACY, LATENCY)

ALERTS = (
    Alert(
        "TTCDown",
        # What showed itself as a TTC service, under any job's name, and is down; or, as a target
        # found by DNS name does not go to 0 but vanishes, a job that has no target any more; or
        # nothing has ever shown itself.
        f"up == 0 and {TARGET} last_over_time(ttc_build_info[{FORGOTTEN_AFTER}]) "
        f"or max by (job) (last_over_time(ttc_build_info[{FORGOTTEN_AFTER}])) unless on (job) up "
        f"or absent_over_time(ttc_build_info[{FORGOTTEN_AFTER}])",
        "2m",
        True,
        "TTC does not answer Prometheus.",
        "{{ with $labels.instance }}{{ . }}{{ else }}The service{{ end }} has not answered a "
        "scrape for two minutes: cameras get no answers.",
    ),
    Alert(
        "TTCNotReady",
        f"{SHORT.gauge(M.ready)} == 0",
        "1m",
        True,
        "TTC runs but does not get on.",
        "{{ $labels.instance }} takes no requests, or its device has been at one batch for "
        "minutes.",
    ),
    Alert(
        "TTCErrors",
        SHORT.ratio(
            SHORT.rate(M.requests, f'{PREDICT}, code=~"5.."'), SHORT.rate(M.requests, PREDICT)
        )
        + f" > {ERROR_SHARE:g}",
        "5m",
        True,
        "Predictions fail.",
        "{{ $value | humanizePercentage }} of the requests to {{ $labels.instance }} got a status "
        "of 500 or above in the last five minutes.",
    ),
    Alert(
        "TTCLatency",
        f"{LATENCY.name} > {LATENCY_SECONDS:g}",
        "10m",
        False,
        "Answers take long.",
        "One request in a hundred to {{ $labels.instance }} takes {{ $value | humanizeDuration }} "
        "or more.",
    ),
    Alert(
        "TTCRefusing",
        SHORT.ratio(
            SHORT.rate(M.requests, f'{PREDICT}, code="429"'), SHORT.rate(M.requests, PREDICT)
        )
        + f" > {REFUSED_SHARE:g}",
        "5m",
        False,
        "The queue is full; images are refused.",
        "{{ $value | humanizePercentage }} of the requests to {{ $labels.instance }} were refused "
        "with 429 in the last five minutes: more is asked than it can answer.",
    ),
    Alert(
        "TTCQueueAge",
        f"{SHORT.gauge(M.queue_oldest_age)} > {QUEUE_AGE_SECONDS:g}",
        "2m",
        False,
        "Images wait long for their turn.",
        "The oldest request at {{ $labels.instance }} has waited {{ $value | humanizeDuration }}, "
        "and so it has been for two minutes.",
    ),
    Alert(
        "TTCShedding",
        f"{HOUR.increase(M.shed)} / {TARGET} "
        f"({HOUR.increase(M.images)} >= {FEWEST_ANSWERS}) > {SHED_SHARE:g}",
        "30m",
        False,
        "Learning is given up most of the time.",
        "{{ $value | humanizePercentage }} of the images at {{ $labels.instance }} within the last "
        "hour were answered without learning from them, since the queue stands: there is more to "
        "do than there is time for.",
    ),
    Alert(
        "TTCLoopLag",
        f"{SHORT.gauge(M.loop_lag)} > {LOOP_LAG_SECONDS:g}",
        "5m",
        False,
        "The event loop is late.",
        "The event loop of {{ $labels.instance }} came {{ $value | humanizeDuration }} late to a "
        "timer: all requests wait that long.",
    ),
    Alert(
        "TTCEntropyCollapse",
        f"{LONG.mean(M.entropy)} < {TARGET} ({CERTAIN_SHARE:g} * {LONG.gauge(M.entropy_limit)}) "
        f"and {TARGET} {LONG.gauge(M.dominant_class)} > {DOMINANT_AND_CERTAIN:g} "
        # Where nothing was learned nothing collapsed: the default's answers to one thing for long
        # are certain (0.03 nats, all right), and it learns nothing of them.
        f"and {TARGET} {LONG.gauge(M.drift)} > 0 "
        f"and {TARGET} {LONG.increase(M.images)} >= {FEWEST_ANSWERS} "
        f"and {TARGET} {LEARNS}",
        "10m",
        True,
        "Answers are certain and mostly one class: the model has probably collapsed.",
        "The mean entropy at {{ $labels.instance }} over fifteen minutes is "
        '{{ printf "%.3f" $value }} nats, and most answers are one class. Entropy minimisation '
        "that goes wrong ends like this, whatever the images show.",
    ),
    Alert(
        "TTCUncertain",
        f"{LONG.mean(M.entropy)} > {TARGET} ({UNCERTAIN_SHARE:g} * {LONG.gauge(M.entropy_limit)}) "
        f"and {TARGET} {LONG.increase(M.images)} >= {FEWEST_ANSWERS}",
        "10m",
        False,
        "Answers tell next to nothing.",
        "The mean entropy at {{ $labels.instance }} over fifteen minutes is "
        '{{ printf "%.3f" $value }} nats, near what guessing has: images of one kind only, too few '
        "in a batch, or nothing that the model knows.",
    ),
    Alert(
        "TTCClassCollapse",
        f"{SHORT.gauge(M.dominant_class)} > {DOMINANT_SHARE:g} "
        f"and {TARGET} {LONG.increase(M.images)} >= {FEWEST_ANSWERS}",
        "10m",
        False,
        "Almost all answers are one class.",
        "{{ $value | humanizePercentage }} of the last 500 answers of {{ $labels.instance }} are "
        "one class: the cameras see one thing only, or the model has collapsed.",
    ),
    Alert(
        "TTCAccuracyDrop",
        f"avg_over_time({ACCURACY.name}[6h] offset 15m) - {ACCURACY.name} > {ACCURACY_DROP:g} "
        f"and count_over_time({ACCURACY.name}[6h] offset 15m) >= {BASELINE_RECORDS}",
        "10m",
        True,
        "Labels say that the model has become worse.",
        "The accuracy at {{ $labels.instance }} over fifteen minutes is "
        "{{ $value | humanizePercentage }} below that of the six hours before.",
    ),
    Alert(
        "TTCAdaptationStalled",
        f"{LONG.increase(M.selected)} / {TARGET} "
        f"clamp_min({LONG.gauge(M.streams)}, 1) > {STALLED_IMAGES} "
        f"and {TARGET} {LONG.increase(M.steps)} == 0 "
        f"and {TARGET} {LEARNS}",
        "5m",
        False,
        "Images are selected, but nothing is learned.",
        "{{ $labels.instance }} selected {{ $value | humanize }} images a stream in fifteen "
        "minutes to be learned from, without a single optimizer step.",
    ),
    Alert(
        "TTCDrift",
        f"{SHORT.gauge(M.drift)} > {DRIFT:g}",
        "10m",
        False,
        "A stream is far from the source model.",
        "The adapted parameters of a stream at {{ $labels.instance }} differ from the source's by "
        "{{ $value | humanizePercentage }} of their norm.",
    ),
    Alert(
        "TTCStreamHeld",
        f"time() - ttc_held_stream_timestamp_seconds > {HELD_SECONDS}",
        "1m",
        False,
        "What a stream adapted to does harm; the source answers it.",
        "Stream {{ $labels.stream }} at {{ $labels.instance }} has been answered by the source for "
        "{{ $value | humanizeDuration }}: adapting to it is worse than not to.",
    ),
    Alert(
        "TTCWorseThanSource",
        f"{SHORT.gauge(M.estimated_accuracy, SOURCES)} - ignoring (answers) "
        f"{SHORT.gauge(M.estimated_accuracy, ADAPTED)} > {ESTIMATED_HARM:g}",
        "10m",
        False,
        "By the estimate without labels the source would be better.",
        "Over all streams at {{ $labels.instance }} the source is estimated to be right in "
        "{{ $value | humanizePercentage }} more of the images than what is adapted.",
    ),
    Alert(
        "TTCNotSaving",
        f"{SHORT.gauge(M.unsaved_streams)} > 0 "
        f"and {TARGET} {SHORT.increase(M.saves, NOT_WRITTEN)} > 0",
        "10m",
        False,
        "What streams learn cannot be saved.",
        "{{ $value }} streams at {{ $labels.instance }} have learned what no file has, and writing "
        "fails: the disk of --state-dir is full or away, or a method's state cannot be written.",
    ),
    Alert(
        "TTCChangesLost",
        f"increase({CHANGES_LOST}[{LOST_WITHIN}]) > 0",
        "0m",
        False,
        "The log of changes has a gap.",
        "About {{ $value | humanize }} lines of the log of changes at {{ $labels.instance }} could "
        "not be written within the last hour: what they would have told is nowhere.",
    ),
    Alert(
        "TTCChangesCut",
        f"max_over_time({CHANGES_LINE}[{CUT_WITHIN}]) - ({CHANGES_LINE} > 0) > 0",
        "0m",
        True,
        "The log of changes is shorter than it was.",
        "{{ $value | humanize }} lines of the log of changes at {{ $labels.instance }} were on "
        "disk within the last day, and are not: it was cut, deleted, or replaced by an older copy.",
    ),
    Alert(
        "TTCSuspectFrames",
        f"{LONG.increase(M.suspects, by=('kind',))} / {TARGET} group_left () "
        f"({LONG.increase(M.images)} >= {FEWEST_ANSWERS}) > {SUSPECT_SHARE:g}",
        "10m",
        False,
        "Cameras send faulty frames.",
        "{{ $value | humanizePercentage }} of the images at {{ $labels.instance }} over fifteen "
        "minutes look {{ $labels.kind }}: a camera has failed. Its answers tell nothing.",
    ),
    Alert(
        "TTCSilentStreams",
        f"{SHORT.gauge(M.silent_streams)} > 0",
        "10m",
        False,
        "Cameras have gone silent.",
        "{{ $value }} streams at {{ $labels.instance }} have sent nothing for much longer than is "
        "their habit.",
    ),
    Alert(
        "TTCSmallBatches",
        f"{LONG.mean(M.batch_images)} < {SMALL_BATCH} and {TARGET} {BATCH_STATISTICS}",
        "15m",
        False,
        "Batches are too small for batch statistics.",
        "Batches at {{ $labels.instance }} have {{ $value | humanize }} images on average, and "
        "normalise with their own statistics: accuracy suffers though nothing fails.",
    ),
)


def rules_yaml() -> str:
    """The rules file as text."""
    groups = [
        {"name": "ttc-records", "interval": "30s", "rules": [each.rule() for each in RECORDS]},
        {"name": "ttc-alerts", "rules": [each.rule() for each in ALERTS]},
    ]
    head = "# Written by `make monitoring`; edit monitoring/alerts.py.\n"
    return head + str(yaml.safe_dump({"groups": groups}, sort_keys=False, width=100))
