"""What the dashboard shows, in the order in which a person asks. Knows nothing of Grafana."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from monitoring.promql import METRICS as M
from monitoring.promql import Queries

Kind = Literal["lines", "stacked", "share", "heatmap", "value", "table"]

# Grafana's variables: the chosen targets, and a window that fits the scrapes and the zoom.
Q = Queries('job=~"$job", instance=~"$instance"', "$__rate_interval", by=("instance",))
PREDICT = 'route="/predict"'
UP_NOW, BUILD = Q.selector("up"), Q.selector("ttc_build_info")
HELD_SINCE = "ttc_held_stream_timestamp_seconds"  # no series while no stream is held
# Of the labelled answers the mean confidence less the share that was right.
SURE = M.labelled_confidence
RIGHT = Q.observed(SURE, 'answer="right"')
OVERCONFIDENCE = Q.ratio(f"({Q.time_in(SURE)} - {RIGHT})", Q.observed(SURE))
assert M.predictions is not None  # declared for so few classes
PREDICTIONS = M.predictions


@dataclass(frozen=True)
class Query:
    """One expression and the name of its lines; {{label}} stands for a label's value."""

    expression: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One picture.

    Attributes:
        description: what it shows, and what to make of it.
        unit: Grafana's name of one; "short" for plain numbers.
        width: of the 24 columns of a row.
        limits: of the axis.
        exemplars: whether single requests are marked, too.
    """

    title: str
    description: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: Kind = "lines"
    width: int = 8
    limits: tuple[float | None, float | None] = (0, None)
    exemplars: bool = False


@dataclass(frozen=True)
class Section:
    """A question, and the panels that answer it."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Annotation:
    """Moments marked across all panels; the expression's values are their Unix times."""

    name: str
    expression: str
    text: str
    colour: str


ANNOTATIONS = (
    Annotation("Resets", f"{Q.gauge(M.last_reset)} > 0", "reset at {{instance}}", "orange"),
    Annotation("Starts", Q.selector("process_start_time_seconds"), "start of {{instance}}", "red"),
)

UP = Section(
    "Is it up, and how much is asked of it?",
    (
        Panel(
            "Ready",
            "Whether it answers Prometheus and takes requests; no, too, for what was there within "
            "the hour and has gone.",
            (
                Query(
                    f"min by (instance) ({UP_NOW} * on (job, instance) {Q.gauge(M.ready)} "
                    f"or {UP_NOW} == 0) or 0 * (max by (instance) "
                    f"(last_over_time({BUILD}[1h])) unless on (instance) {UP_NOW})",
                    "{{instance}}",
                ),
            ),
            kind="value",
            width=4,
            limits=(0, 1),
        ),
        Panel(
            "Running for",
            "Since the process started. A short time after a long one: it was restarted.",
            (
                Query(
                    f"time() - {Q.selector('process_start_time_seconds')}",
                    "{{instance}}",
                ),
            ),
            unit="s",
            kind="value",
            width=4,
        ),
        Panel(
            "What runs",
            "The model and method, and the versions that answers depend on.",
            (
                Query(
                    f"{Q.selector('ttc_model_info')} * on (job, instance) "
                    f"group_left (service, torch) {Q.selector('ttc_build_info')}",
                    "{{model}} {{method}}",
                ),
            ),
            kind="table",
            width=16,
        ),
        Panel(
            "Images answered",
            "Images a second. None while requests come: look at errors and refusals.",
            (Query(Q.rate(M.images), "{{instance}}"),),
            unit="images/s",
            width=6,
        ),
        Panel(
            "Requests",
            "Requests a second by route.",
            (Query(Q.rate(M.requests, by=("route",)), "{{route}} {{instance}}"),),
            unit="reqps",
            width=6,
        ),
        Panel(
            "Requests in progress",
            "Connections that wait for their answer; health and metrics left out.",
            (Query(Q.gauge(M.requests_in_progress), "{{instance}}"),),
            width=6,
        ),
        Panel(
            "Streams",
            "Streams in memory: cameras, if each names its own; and those a second that made room.",
            (
                Query(Q.gauge(M.streams), "{{instance}}"),
                Query(Q.rate(M.evicted, by=("reason",)), "{{reason}} {{instance}}"),
            ),
            width=6,
        ),
        Panel(
            "Saving",
            "Streams that have changed since their file was written, and files written a second. "
            "failed: the disk is full or away.",
            (
                Query(Q.gauge(M.unsaved_streams), "unsaved {{instance}}"),
                Query(Q.rate(M.saves, by=("outcome",)), "{{outcome}} {{instance}}"),
            ),
            width=12,
        ),
        Panel(
            "Age of the oldest unsaved change",
            "What a kill would lose. Above --save-interval: saving fails, or cannot keep up.",
            (Query(Q.gauge(M.unsaved_age), "{{instance}}"),),
            unit="s",
            width=12,
        ),
    ),
)

CAMERAS = Section(
    "Do the cameras work?",
    (
        Panel(
            "Share of suspect images",
            "Of all images those that look like a faulty camera's, by kind; `/status` says in "
            "which streams. They are answered, and with --guard on nothing is learned from them.",
            (
                Query(
                    f"{Q.rate(M.suspects, by=('kind',))} "
                    f"/ on (instance) group_left () ({Q.rate(M.images)} > 0)",
                    "{{kind}} {{instance}}",
                ),
            ),
            unit="percentunit",
            width=12,
        ),
        Panel(
            "Silent streams",
            "Streams that have sent nothing for much longer than is their habit, for a day at "
            "most; `/status` and the events name them.",
            (Query(Q.gauge(M.silent_streams), "{{instance}}"),),
            width=12,
        ),
    ),
)

ERRORS = Section(
    "Does it fail, or refuse?",
    (
        Panel(
            "Share of predictions that failed",
            "Answers of /predict with a status of 500 and above. Anything but 0 has a line in the "
            "log.",
            (
                Query(
                    Q.ratio(
                        Q.rate(M.requests, f'{PREDICT}, code=~"5.."'),
                        Q.rate(M.requests, PREDICT),
                    )
                    + f" or 0 * {Q.rate(M.requests, PREDICT)}",
                    "{{instance}}",
                ),
            ),
            unit="percentunit",
        ),
        Panel(
            "Answers other than 200",
            "By status: 4xx is the client's mistake, 429 a full queue, 499 a client that left, "
            "500 the model's failure, 503 starting or draining, 504 the client's own deadline.",
            (
                Query(
                    Q.rate(M.requests, 'code!="200"', by=("code",)) + " > 0",
                    "{{code}} {{instance}}",
                ),
            ),
            unit="reqps",
        ),
        Panel(
            "Images refused, and left",
            "By reason; the dashed line is images whose client went away before their turn.",
            (
                Query(Q.rate(M.rejected, by=("reason",)), "{{reason}} {{instance}}"),
                Query(Q.rate(M.cancelled), "client left {{instance}}"),
            ),
            unit="images/s",
        ),
    ),
)

LATENCY = Section(
    "How long does an answer take, and where does the time go?",
    (
        Panel(
            "Latency of /predict",
            "From a request's first byte to its answer's last. A point is one request; its label "
            "has the id to look for in the log.",
            tuple(
                Query(Q.quantile(q, M.request_seconds, PREDICT), f"p{100 * q:g} {{{{instance}}}}")
                for q in (0.5, 0.95, 0.99)
            ),
            unit="s",
            exemplars=True,
        ),
        Panel(
            "Mean time in each stage",
            "Decode, queue and encode of a request; forward and adapt of its batch. Adapting comes "
            "after the answer; it delays the next batch.",
            (
                Query(
                    Q.mean(M.stage_seconds, by=("stage",)),
                    "{{stage}} {{instance}}",
                ),
            ),
            unit="s",
        ),
        Panel(
            "Share of each stage",
            "Of the mean times beside, all targets together. Mostly queue: more is asked than the "
            "device can do.",
            (
                Query(
                    f"avg by (stage) ({Q.mean(M.stage_seconds, by=('stage',))} >= 0)",
                    "{{stage}}",
                ),
            ),
            unit="percentunit",
            kind="share",
            limits=(0, 1),
        ),
    ),
)

SATURATION = Section(
    "How full is it?",
    (
        Panel(
            "Images waiting",
            "At the limit, requests are refused with 429.",
            (
                Query(Q.gauge(M.queue_images), "waiting {{instance}}"),
                Query(Q.gauge(M.queue_limit), "limit {{instance}}"),
            ),
            unit="images",
        ),
        Panel(
            "Age of the oldest waiting request",
            "Above the time that a batch takes: images come faster than they are answered.",
            (Query(Q.gauge(M.queue_oldest_age), "{{instance}}"),),
            unit="s",
        ),
        Panel(
            "Age of the device's batch",
            "How long the device has been at it. Minutes: it hangs, and the service is not ready.",
            (Query(Q.gauge(M.batch_age), "{{instance}}"),),
            unit="s",
        ),
        Panel(
            "Images in a batch",
            "Mean and largest tenth. With batch statistics small batches cost accuracy; with "
            "moving ones only speed.",
            (
                Query(Q.mean(M.batch_images), "mean {{instance}}"),
                Query(Q.quantile(0.9, M.batch_images), "p90 {{instance}}"),
            ),
            unit="images",
        ),
        Panel(
            "Why batches closed",
            "full: the service is busy. wait: the device was free. drain: it is shutting down.",
            (Query(Q.rate(M.batches, by=("reason",)), "{{reason}} {{instance}}"),),
            unit="batches/s",
            kind="stacked",
        ),
        Panel(
            "Event-loop lag",
            "The worst of the last 30 s. Long: something keeps the loop from reading and "
            "answering.",
            (Query(Q.gauge(M.loop_lag), "{{instance}}"),),
            unit="s",
        ),
        Panel(
            "Processors used",
            "By the process: 1 is one core.",
            (
                Query(
                    f"rate({Q.selector('process_cpu_seconds_total')}[$__rate_interval])",
                    "{{instance}}",
                ),
            ),
            unit="cores",
        ),
        Panel(
            "Memory",
            "Resident memory of the process. It must not rise for ever.",
            (Query(Q.selector("process_resident_memory_bytes"), "{{instance}}"),),
            unit="bytes",
        ),
        Panel(
            "Open files",
            "Connections and files, and how many the process may have.",
            (
                Query(Q.selector("process_open_fds"), "open {{instance}}"),
                Query(Q.selector("process_max_fds"), "limit {{instance}}"),
            ),
        ),
    ),
)

ADAPTATION = Section(
    "Does it learn, and does learning help?",
    (
        Panel(
            "Entropy of the answers",
            "Mean, in nats. The dashed line is ln K, where an answer tells nothing. It jumps when "
            "conditions change and falls while the model adapts; near 0 for long is a collapse.",
            (
                Query(Q.mean(M.entropy), "mean {{instance}}"),
                Query(Q.gauge(M.entropy_limit), "ln K {{instance}}"),
            ),
            unit="nats",
        ),
        Panel(
            "Entropy over time",
            "How many answers had which entropy, in nats. Two bands: some images are clear, "
            "others not.",
            (Query(Q.buckets(M.entropy), "{{le}}"),),
            unit="nats",
            kind="heatmap",
        ),
        Panel(
            "Confidence over time",
            "How many answers gave their best class which probability.",
            (Query(Q.buckets(M.confidence), "{{le}}"),),
            unit="percentunit",
            kind="heatmap",
        ),
        Panel(
            "Selection rate",
            "Share of the images that the model learns from: the sure ones, while the answers are "
            "diverse. 0 on a stream of few classes. TTC: those below the batch's mean entropy, "
            "about 0.6.",
            (Query(Q.ratio(Q.rate(M.selected), Q.rate(M.considered)), "{{instance}}"),),
            unit="percentunit",
            limits=(0, 1),
        ),
        Panel(
            "Loss of the last batch",
            "By term. similarity far above entropy: the two views disagree.",
            (Query(f"{Q.gauge(M.loss)} > -Inf", "{{term}} {{instance}}"),),
            unit="nats",
            limits=(None, None),
        ),
        Panel(
            "Optimizer steps",
            "Steps a second, all streams. None while images come: it does not learn.",
            (Query(Q.rate(M.steps), "{{instance}}"),),
            unit="steps/s",
        ),
        Panel(
            "Time since the last step",
            "Nothing is shown before the first.",
            (Query(f"time() - ({Q.gauge(M.last_step)} > 0)", "{{instance}}"),),
            unit="s",
        ),
        Panel(
            "Batches waiting for a step",
            "Their gradients are added up; a step comes every 50 images of a stream that were "
            "learned from, TTC's every 200 images.",
            (Query(Q.gauge(M.pending_batches), "{{instance}}"),),
            unit="batches",
        ),
        Panel(
            "Batches that nothing was learned from",
            "none_selected: no image qualified. non_finite: the loss was no number. shed: for lack "
            "of time, or by --adapt idle or never. settled: with --adapt on-shift the stream is as "
            "it was when it last learned.",
            (Query(Q.rate(M.skipped, by=("reason",)), "{{reason}} {{instance}}"),),
            unit="batches/s",
        ),
        Panel(
            "Images that went without",
            "The queue stands, so nothing is learned from them; second_view: they were looked at "
            "once besides. For long: there is too much to do for one device.",
            (Query(Q.rate(M.shed, by=("what",)), "{{what}} {{instance}}"),),
            unit="images/s",
        ),
        Panel(
            "Given up now",
            "1 while it is: learning, then the second view, too. `/status` and the events say "
            "since when, and how long somebody waited and how many more waited than may.",
            (Query(Q.gauge(M.shedding), "{{what}} {{instance}}"),),
            limits=(0, 1),
        ),
        Panel(
            "Parameter drift",
            "How far the adapted parameters are from the source's, relative to their norm; the "
            "worst stream. A reset brings it to 0.",
            (Query(Q.gauge(M.drift), "{{instance}}"),),
            unit="percentunit",
        ),
        Panel(
            "Steps beyond the envelope",
            "By clause: cut to the edge, or dropped. Again and again: a stream stands at the edge. "
            "parameters cuts each step by design.",
            (
                Query(
                    Q.increase(M.envelope_steps, by=("clause", "verdict")),
                    "{{clause}} {{verdict}} {{instance}}",
                ),
            ),
            unit="steps",
        ),
        Panel(
            "Resets",
            "Streams put back to the source, by cause.",
            (Query(Q.increase(M.resets, by=("cause",)), "{{cause}} {{instance}}"),),
        ),
        Panel(
            "Streams without the second view",
            "Their mirror images mean something else, as those of digits do, and are left out. "
            "All of them: the model was trained without mirroring.",
            (
                Query(Q.gauge(M.without_second_view), "{{instance}}"),
                Query(Q.gauge(M.streams), "all {{instance}}"),
            ),
        ),
    ),
)

GUARD = Section(
    "Does adapting do harm?",
    (
        Panel(
            "Streams the source answers",
            "What they adapted to was seen to do harm, or is suspected to; in memory or saved; and "
            "those that it does not answer since the guard only observes. "
            "`/status` says of each since when, on what evidence and what was done.",
            (
                Query(Q.gauge(M.held), "{{instance}}"),
                Query(f"{Q.gauge(M.doubted)} - {Q.gauge(M.held)}", "observed only {{instance}}"),
                Query(Q.gauge(M.streams), "all {{instance}}"),
            ),
        ),
        Panel(
            "How long the source has answered",
            "By stream, of the five for which it has been longest; a line at 0 is no stream.",
            (
                Query(
                    f"time() - {Q.selector(HELD_SINCE)} or 0 * {Q.gauge(M.held)}",
                    "{{stream}} {{instance}}",
                ),
            ),
            unit="s",
        ),
        Panel(
            "What the guard did",
            "By action and reason, and apart what it would have done (--guard observe); and "
            "rollbacks and resets by cause: request is by hand.",
            (
                Query(
                    Q.increase(M.guard_actions, 'observed="false"', by=("action", "reason")),
                    "{{action}}, {{reason}} {{instance}}",
                ),
                Query(
                    Q.increase(M.guard_actions, 'observed="true"', by=("action", "reason")),
                    "observed: {{action}}, {{reason}} {{instance}}",
                ),
                Query(Q.increase(M.rollbacks, by=("cause",)), "rollback, {{cause}} {{instance}}"),
                Query(Q.increase(M.resets, by=("cause",)), "reset, {{cause}} {{instance}}"),
            ),
        ),
    ),
)

TRUTH = Section(
    "Is it right?",
    (
        Panel(
            "Accuracy where labels came",
            "Of the labels that came within the window, and of the last 500. Empty without labels.",
            (
                Query(Q.ratio(Q.rate(M.correct), Q.rate(M.labelled)), "now {{instance}}"),
                Query(f"{Q.gauge(M.window_accuracy)} >= 0", "last 500 {{instance}}"),
            ),
            unit="percentunit",
            limits=(0, 1),
        ),
        Panel(
            "Estimated accuracy",
            "Without labels, of the images that the source answered, too: of what is adapted, and "
            "of the source. In the mean it is wrong by 11 to 15 points. Empty with --guard off.",
            (
                Query(f"{Q.gauge(M.estimated_accuracy)} >= 0", "{{answers}} {{instance}}"),
                Query(f"{Q.gauge(M.window_accuracy)} >= 0", "by labels {{instance}}"),
            ),
            unit="percentunit",
            limits=(0, 1),
        ),
        Panel(
            "Labelled images",
            "How many labels a second came, with their images or later: the accuracy is of these.",
            (Query(Q.rate(M.labelled), "{{instance}}"),),
            unit="images/s",
        ),
        Panel(
            "Confidence less accuracy",
            "By how much the answers whose label came are surer than they are right. Above 0: "
            "over-confident, as adapting makes; below: too modest. Empty without labels.",
            (Query(OVERCONFIDENCE, "{{instance}}"),),
            unit="percentunit",
            limits=(None, None),
        ),
        Panel(
            "Labels that came later",
            "By outcome. unknown: another stream's, or so late that the id has left the memory "
            "(--feedback-ids). contradicting: two labels for one answer; the first counts.",
            (Query(Q.rate(M.feedback_labels, by=("outcome",)), "{{outcome}} {{instance}}"),),
        ),
        Panel(
            "Share of the most frequent class",
            "In the last 500 answers. Near 1: a camera sees one thing only, or the model has "
            "collapsed.",
            (Query(f"{Q.gauge(M.dominant_class)} >= 0", "{{instance}}"),),
            unit="percentunit",
            limits=(0, 1),
        ),
        Panel(
            "Answers by class",
            "Share of each class. Models of more than 100 classes have no such series.",
            (Query(f"sum by (class) ({Q.rate(PREDICTIONS, by=('class',))})", "{{class}}"),),
            unit="images/s",
            kind="share",
            width=24,
        ),
    ),
)

SECTIONS = (UP, CAMERAS, ERRORS, LATENCY, SATURATION, ADAPTATION, GUARD, TRUTH)

# Metrics that no panel shows, and why.
WITHOUT_PANEL = {
    "ttc_changes_head": "a hash, kept to be held against the log: ttc changes verify --metric",
    "ttc_changes_line": "the log's length; TTCChangesCut rings where it falls",
    "ttc_changes_lost_total": "TTCChangesLost rings at the first; the log itself has a line of it",
    "ttc_connections_closed_total": "a stranger's doing; the log and /status name it",
    "process_virtual_memory_bytes": "address space; resident memory is what runs out",
    "ttc_feedback_known_ids": "grows to --feedback-ids and stays; unknown labels tell of too few",
    "ttc_live_readers": "who looks at the live page; at most a hundred",
    "ttc_live_dropped_frames_total": "readers on a poor line, who begin anew; nothing waits",
    "ttc_model_loaded_timestamp_seconds": "what runs shows the digest; /status says since when",
    "ttc_model_loads_total": "somebody asked, and has the answer; the log and events name refusals",
    "ttc_stream_state_bytes": "part of resident memory; to be held against --max-stream-bytes",
}
