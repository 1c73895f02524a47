"""Every metric of the design is there from the start, documented, and counts what it says."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as open_metrics
from prometheus_client.parser import text_string_to_metric_families

from service.metrics import (
    LAGS_KEPT,
    MOST_CLASS_LABELS,
    SKIP_REASONS,
    Metrics,
    unit_of,
    versions,
)
from service.reloading import model_labels
from service.settings import Settings
from tests.fixtures.networks import make_model
from ttc_core.envelope.verdicts import CLAUSES
from ttc_core.methods import Adaptation, HostPrediction, create

TABLE = Path(__file__).parents[2] / "docs" / "metrics.md"

# DESIGN §7, with its labels, and what the dashboard needs beyond; without what it lists for parts
# that do not exist yet.
DESIGN = {
    "ttc_ready": set(),
    "ttc_http_requests_total": {"route", "method", "code"},
    "ttc_http_request_duration_seconds": {"route"},
    "ttc_http_requests_in_progress": set(),
    "ttc_connections_closed_total": {"reason"},
    "ttc_live_readers": set(),
    "ttc_live_dropped_frames_total": set(),
    "ttc_images_total": set(),
    "ttc_rejected_images_total": {"reason"},
    "ttc_cancelled_images_total": set(),
    "ttc_stage_duration_seconds": {"stage"},
    "ttc_queue_images": set(),
    "ttc_queue_limit_images": set(),
    "ttc_queue_oldest_age_seconds": set(),
    "ttc_batch_age_seconds": set(),
    "ttc_batch_images": set(),
    "ttc_batches_total": {"reason"},
    "ttc_event_loop_lag_seconds": set(),
    "ttc_entropy_nats": set(),
    "ttc_entropy_limit_nats": set(),
    "ttc_confidence_ratio": set(),
    "ttc_selected_images_total": set(),
    "ttc_considered_images_total": set(),
    "ttc_loss": {"term"},
    "ttc_optimizer_steps_total": set(),
    "ttc_pending_batches": set(),
    "ttc_adaptation_skipped_total": {"reason"},
    "ttc_shed_images_total": {"what"},
    "ttc_shedding": {"what"},
    "ttc_last_step_timestamp_seconds": set(),
    "ttc_parameter_drift_ratio": set(),
    "ttc_streams_without_second_view": set(),
    "ttc_suspect_images_total": {"kind"},
    "ttc_silent_streams": set(),
    "ttc_predictions_total": {"class"},
    "ttc_dominant_class_ratio": set(),
    "ttc_last_reset_timestamp_seconds": set(),
    "ttc_resets_total": {"cause"},
    "ttc_rollbacks_total": {"cause"},
    "ttc_guard_actions_total": {"action", "reason", "observed"},
    "ttc_envelope_steps_total": {"clause", "verdict"},
    "ttc_doubted_streams": set(),
    "ttc_held_streams": set(),
    "ttc_held_stream_timestamp_seconds": {"stream"},
    "ttc_streams": set(),
    "ttc_stream_state_bytes": set(),
    "ttc_streams_evicted_total": {"reason"},
    "ttc_saves_total": {"outcome"},
    "ttc_unsaved_streams": set(),
    "ttc_unsaved_age_seconds": set(),
    "ttc_changes_line": set(),
    "ttc_changes_head": set(),
    "ttc_changes_lost_total": set(),
    "ttc_labelled_images_total": set(),
    "ttc_correct_images_total": set(),
    "ttc_labelled_confidence_ratio": {"answer"},
    "ttc_window_accuracy_ratio": set(),
    "ttc_estimated_accuracy_ratio": {"answers"},
    "ttc_feedback_labels_total": {"outcome"},
    "ttc_feedback_known_ids": set(),
    "ttc_build_info": {"service", "python", "torch", "numpy"},
    "ttc_model_info": {
        *("model", "digest", "method", "device", "precision", "classes", "statistics", "learns"),
    },
    "ttc_model_loaded_timestamp_seconds": set(),
    "ttc_model_loads_total": {"outcome"},
}
FROM_THE_START = {
    ("ttc_rejected_images_total", "reason"): {
        *("full", "too_large", "unreadable", "type", "range", "draining", "deadline", "streams"),
    },
    ("ttc_stage_duration_seconds_count", "stage"): {
        *("decode", "queue", "forward", "adapt", "encode"),
    },
    ("ttc_batches_total", "reason"): {"full", "wait", "drain"},
    ("ttc_loss", "term"): {"entropy", "similarity", "total"},
    ("ttc_adaptation_skipped_total", "reason"): {
        *("none_selected", "non_finite", "shed", "settled", "suspect", "failed", "other"),
    },
    ("ttc_shed_images_total", "what"): {"learning", "second_view"},
    ("ttc_shedding", "what"): {"learning", "second_view"},
    ("ttc_suspect_images_total", "kind"): {"black", "white", "blank", "frozen", "torn", "noise"},
    ("ttc_resets_total", "cause"): {"request", "failure", "guard"},
    ("ttc_rollbacks_total", "cause"): {"request", "guard"},
    ("ttc_guard_actions_total", "action"): {"hold", "release", "roll_back", "reset"},
    ("ttc_guard_actions_total", "observed"): {"true", "false"},
    ("ttc_envelope_steps_total", "clause"): set(CLAUSES),
    ("ttc_envelope_steps_total", "verdict"): {"cut", "dropped"},
    ("ttc_guard_actions_total", "reason"): {"harm", "suspicion", "gain", "no_gain"},
    ("ttc_estimated_accuracy_ratio", "answers"): {"adapted", "source"},
    ("ttc_model_loads_total", "outcome"): {"loaded", "unchanged", "refused"},
    ("ttc_feedback_labels_total", "outcome"): {
        *("taken", "unknown", "repeated", "contradicting"),
    },
    ("ttc_labelled_confidence_ratio_count", "answer"): {"right", "wrong"},
    ("ttc_predictions_total", "class"): set(map(str, range(10))),
}


@pytest.fixture
def metrics():
    labels = model_labels(Settings(), create("tent", make_model()))
    return Metrics(CollectorRegistry(), classes=10, model=labels)


def value(metrics, name, **labels):
    return metrics.registry.get_sample_value(name, labels)


def declared(metrics):
    """name -> every metric of ours, as people write it; the client library has process_ ones."""
    names = {}
    for family in metrics.registry.collect():
        if family.name.startswith("process_"):
            continue
        suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
        names[family.name + suffix] = family
    return names


def answers(classes, *, confidence=0.9, selected=None):
    """Answers of a model of ten classes that is this confident."""
    count = len(classes)
    probabilities = np.full((count, 10), (1 - confidence) / 9, np.float32)
    probabilities[np.arange(count), classes] = confidence
    logits = np.log(probabilities)
    entropy = -(probabilities * np.log(probabilities)).sum(axis=1)
    chosen = np.ones(count, bool) if selected is None else np.array(selected)
    return HostPrediction(logits, probabilities, entropy, chosen, version=0)


def test_every_metric_of_the_design_is_declared_with_help(metrics):
    """No fewer, no more, and each says what it counts."""
    found = declared(metrics)
    assert set(found) == set(DESIGN)
    for name, family in found.items():
        assert family.documentation.endswith("."), name
        # Ratios, times, sizes and counts end in their unit, and OpenMetrics is told it.
        if (unit := unit_of(name)) and family.type != "info":
            assert family.unit == unit, name


def test_every_metric_has_the_labels_of_the_design(metrics):
    """Also those that have no value yet."""
    metrics.requests.labels("/predict", "POST", "200").inc()
    metrics.request_seconds.labels("/predict").observe(1)
    metrics.held_since.streams = lambda: {"cam-7": 1.0}
    for name, family in declared(metrics).items():
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert labels == DESIGN[name], name


@pytest.mark.parametrize(("name", "label"), FROM_THE_START)
def test_label_values_are_present_from_the_start(metrics, name, label):
    """A rate over them never misses its first event."""
    values = {
        sample.labels[label]
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == name
    }
    assert values == FROM_THE_START[name, label]


def test_the_documented_table_is_the_codes(metrics):
    """Names, kinds, labels and meanings: whoever reads the table reads the code."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in TABLE.read_text().splitlines()
        if line.startswith("| `ttc_")
    ]
    found = declared(metrics)
    assert {row[0].strip("`") for row in rows} == set(found)
    assert len(rows) == len(found)
    for name, kind, unit, labels, meaning in rows:
        family = found[name.strip("`")]
        assert kind == family.type
        assert unit == family.unit
        assert meaning == family.documentation
        assert set(filter(None, labels.split(", "))) == DESIGN[name.strip("`")]


def test_the_process_tells_its_memory_and_when_it_started(metrics):
    """What the client library knows of it: restarts and leaks show there."""
    assert value(metrics, "process_start_time_seconds") > 1.6e9
    assert value(metrics, "process_resident_memory_bytes") > 1 << 20


def test_a_failed_or_refused_prediction_counts_from_the_first(metrics):
    """The series are there before the first, so that a rate over them sees it."""
    for code in ("200", "400", "429", "499", "500", "503", "504"):
        labels = {"route": "/predict", "method": "POST", "code": code}
        assert value(metrics, "ttc_http_requests_total", **labels) == 0


def test_the_scrape_is_cheap_with_everything_on():
    """What a scrape costs goes by its lines: so many for a hundred classes and every route."""
    metrics = Metrics(CollectorRegistry(), classes=MOST_CLASS_LABELS, model={})
    for route in range(10):
        metrics.request_seconds.labels(f"/{route}").observe(1, exemplar={"request_id": "a" * 64})
        for code in range(10):
            metrics.requests.labels(f"/{route}", "POST", str(code)).inc()
    for encode in (generate_latest, open_metrics):
        assert len(encode(metrics.registry).splitlines()) < 1000


def test_names_follow_the_conventions(metrics):
    """One prefix, base units, _total on counters only."""
    for name, family in declared(metrics).items():
        assert re.fullmatch(r"ttc_[a-z_]+", name)
        assert name.endswith("_total") == (family.type == "counter")
        assert not re.search(r"milli|_ms|percent|minutes", name)


def test_both_expositions_can_be_read(metrics):
    """Prometheus' own parser takes the text; OpenMetrics ends as it must."""
    metrics.count_answers(answers([1, 2]), selects=True)
    families = list(text_string_to_metric_families(generate_latest(metrics.registry).decode()))
    assert len(families) >= len(DESIGN)
    assert open_metrics(metrics.registry).endswith(b"# EOF\n")


def test_two_services_in_one_process_count_apart(metrics):
    """Each brings its own registry."""
    other = Metrics(CollectorRegistry(), classes=10, model={})
    metrics.count_answers(answers([1]), selects=False)
    assert (value(metrics, "ttc_images_total"), value(other, "ttc_images_total")) == (1, 0)


def test_answers_are_counted_by_class_entropy_and_confidence(metrics):
    """Every answer is in each histogram once."""
    metrics.count_answers(answers([1, 1, 7]), selects=False)
    assert value(metrics, "ttc_images_total") == 3
    assert value(metrics, "ttc_predictions_total", **{"class": "1"}) == 2
    assert value(metrics, "ttc_predictions_total", **{"class": "7"}) == 1
    assert value(metrics, "ttc_entropy_nats_count") == 3
    assert value(metrics, "ttc_confidence_ratio_sum") == pytest.approx(2.7)
    assert value(metrics, "ttc_entropy_nats_bucket", le="+Inf") == 3


def test_the_selection_rate_is_of_methods_that_select(metrics):
    """SOURCE selects nothing, which is not the same as a rate of 0."""
    metrics.count_answers(answers([1, 2, 3], selected=[1, 0, 0]), selects=False)
    assert value(metrics, "ttc_considered_images_total") == 0
    metrics.count_answers(answers([1, 2, 3], selected=[1, 0, 1]), selects=True)
    assert value(metrics, "ttc_considered_images_total") == 3
    assert value(metrics, "ttc_selected_images_total") == 2


@pytest.mark.parametrize("reason", ["", "mine", "guard", "x" * 1_000_000, "none_selected\n"])
def test_reasons_of_a_users_own_are_one_label(metrics, reason):
    """A text a batch would be a series a batch."""
    metrics.count_adaptation(Adaptation(skipped=reason))
    assert value(metrics, "ttc_adaptation_skipped_total", reason="other") == 1
    (family,) = (f for f in metrics.registry.collect() if f.name == "ttc_adaptation_skipped")
    assert {sample.labels["reason"] for sample in family.samples} == set(SKIP_REASONS)


def test_a_reset_is_counted_with_its_moment(metrics):
    """By what caused it."""
    metrics.count_reset("request")
    assert value(metrics, "ttc_resets_total", cause="request") == 1
    assert value(metrics, "ttc_last_reset_timestamp_seconds") > 1.6e9


def test_of_the_held_streams_those_are_named_that_have_been_so_for_longest(metrics):
    """Five at most: a label is no list of cameras; the others are in the count alone."""
    metrics.held_since.streams = lambda: {f"cam-{number}": 100.0 - number for number in range(9)}
    (family,) = (each for name, each in declared(metrics).items() if "_held_stream_" in name)
    found = {sample.labels["stream"]: sample.value for sample in family.samples}
    assert found == {f"cam-{number}": 100.0 - number for number in range(4, 9)}


def test_no_estimate_is_not_one_of_zero(metrics):
    """NaN until a guard has compared an image."""
    for answers_of in ("adapted", "source"):
        assert math.isnan(value(metrics, "ttc_estimated_accuracy_ratio", answers=answers_of))


def test_no_loss_is_not_a_loss_of_zero(metrics):
    """Before the first batch, and for terms that a method does not have."""
    assert math.isnan(value(metrics, "ttc_loss", term="similarity"))


def test_the_worst_lag_of_the_last_half_minute_is_kept(metrics):
    """A scrape every 15 s misses no hiccup."""
    for lag in (0.001, 0.7, 0.002):
        metrics.lagged(lag)
    assert value(metrics, "ttc_event_loop_lag_seconds") == 0.7
    for _ in range(LAGS_KEPT):
        metrics.lagged(0.003)
    assert value(metrics, "ttc_event_loop_lag_seconds") == 0.003


def test_steps_losses_and_skips_are_counted(metrics):
    """A gauge keeps the last loss; a term a method does not have stays where it was."""
    metrics.count_adaptation(
        Adaptation(loss=1.5, entropy=1.0, similarity=0.5, selected=3, stepped=True)
    )
    assert value(metrics, "ttc_loss", term="total") == 1.5
    assert value(metrics, "ttc_loss", term="similarity") == 0.5
    assert value(metrics, "ttc_optimizer_steps_total") == 1
    assert value(metrics, "ttc_last_step_timestamp_seconds") > 1.6e9
    metrics.count_adaptation(Adaptation(loss=0.25, entropy=0.25, selected=3))
    metrics.count_adaptation(Adaptation(skipped="shed"))
    assert value(metrics, "ttc_loss", term="entropy") == 0.25
    assert value(metrics, "ttc_loss", term="similarity") == 0.5
    assert value(metrics, "ttc_optimizer_steps_total") == 1
    assert value(metrics, "ttc_adaptation_skipped_total", reason="shed") == 1
    assert value(metrics, "ttc_adaptation_skipped_total", reason="none_selected") == 0


def test_many_classes_make_no_series_each(metrics):
    """Up to a hundred classes are labels; beyond, the metric is left out and counting goes on."""
    few = Metrics(CollectorRegistry(), classes=MOST_CLASS_LABELS, model={})
    many = Metrics(CollectorRegistry(), classes=MOST_CLASS_LABELS + 1, model={})
    assert "ttc_predictions_total" in declared(few)
    assert "ttc_predictions_total" not in declared(many)
    many.count_answers(answers([1]), selects=True)
    assert value(many, "ttc_images_total") == 1


def test_the_status_page_has_the_totals_by_plain_names(metrics):
    """Counters without labels, without the prefix, as numbers; and the seconds of adapting."""
    metrics.count_answers(answers([1]), selects=True)
    for stage, seconds in (("adapt", 0.25), ("forward", 8.0), ("adapt", 0.5)):
        metrics.stage_seconds.labels(stage).observe(seconds)
    counters = metrics.counters()
    assert counters["images_total"] == 1
    assert all(type(each) is int for name, each in counters.items() if "seconds" not in name)
    assert counters.pop("adapt_seconds_total") == 0.75
    assert set(counters) == {
        name.removeprefix("ttc_")
        for name, labels in DESIGN.items()
        if name.endswith("_total") and labels == set()
    }


def test_versions_name_what_a_result_depends_on():
    """They are the labels of ttc_build_info, and go into every row of results."""
    assert set(versions()) >= {"service", "python", "torch", "numpy"}
    assert all(versions().values())
