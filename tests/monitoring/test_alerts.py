"""Each alert fires when it should, keeps silent when it should, and has a page of its own."""

import shutil
import subprocess
from dataclasses import dataclass

import pytest
import yaml

from monitoring.alerts import ALERTS, RECORDS
from monitoring.generate import DOCKER, RULES

HEADINGS = ("## What it means", "## What to look at", "## What to do", "## How to silence it")
TARGET = 'job="ttc", instance="camera-host:8000"'
OTHER = 'job="node", instance="db:9100"'
INFO = f'ttc_model_info{{{TARGET}, learns="yes", statistics="moving"}}'
PAPER = f'ttc_model_info{{{TARGET}, learns="yes", statistics="batch"}}'
SOURCE = f'ttc_model_info{{{TARGET}, learns="no", statistics="source"}}'


def series(name, labels=""):
    return f"{name}{{{', '.join(filter(None, (TARGET, labels)))}}}"


BUILD = series("ttc_build_info")
FAILED = series("ttc_http_requests_total", 'route="/predict", code="500"')
REFUSED = series("ttc_http_requests_total", 'route="/predict", code="429"')
ANSWERED = series("ttc_http_requests_total", 'route="/predict", code="200"')
NOT_SAVED = series("ttc_saves_total", 'outcome="failed"')
HELD = series("ttc_held_stream_timestamp_seconds", 'stream="cam-7"')
ESTIMATED_ADAPTED = series("ttc_estimated_accuracy_ratio", 'answers="adapted"')
ESTIMATED_SOURCE = series("ttc_estimated_accuracy_ratio", 'answers="source"')
FROZEN = series("ttc_suspect_images_total", 'kind="frozen"')
NOISE = series("ttc_suspect_images_total", 'kind="noise"')
LEARNING = series("ttc_shed_images_total", 'what="learning"')
SECOND_VIEW = series("ttc_shed_images_total", 'what="second_view"')
IMAGES = series("ttc_images_total")
FAST = series("ttc_http_request_duration_seconds_bucket", 'route="/predict", le="0.5"')
ALL = series("ttc_http_request_duration_seconds_bucket", 'route="/predict", le="10.0"')
LAST = series("ttc_http_request_duration_seconds_bucket", 'route="/predict", le="+Inf"')


@dataclass(frozen=True)
class Case:
    """What Prometheus scraped, a value a minute, and when to look.

    Attributes:
        firing, silent: histories of series, in promtool's notation.
    """

    firing: list[dict[str, str]]
    silent: list[dict[str, str]]
    minutes: int = 60


CASES = {
    "TTCDown": Case(
        firing=[
            {f"up{{{TARGET}}}": "1x30 0x30", BUILD: "1x30 _x30"},
            {f"up{{{TARGET}}}": "1x30 _x30", BUILD: "1x30 _x30"},  # found by DNS, and gone
            {f"up{{{OTHER}}}": "1x60"},  # no service was ever seen
        ],
        silent=[
            {f"up{{{TARGET}}}": "1x60", BUILD: "1x60", f"up{{{OTHER}}}": "0x60"},
            {f"up{{{TARGET}}}": "1x59 0x1", BUILD: "1x60"},  # a scrape that failed
            {  # replaced by another instance, or by the one on the GPU
                f"up{{{TARGET}}}": "1x30 _x30",
                BUILD: "1x30 _x30",
                'up{job="ttc", instance="other:8000"}': "_x25 1x35",
                'ttc_build_info{job="ttc", instance="other:8000"}': "_x25 1x35",
            },
        ],
    ),
    "TTCNotReady": Case(
        firing=[{series("ttc_ready"): "1x50 0x10"}],
        silent=[{series("ttc_ready"): "1x60 0x0"}],
    ),
    "TTCErrors": Case(
        firing=[{FAILED: "0+6x60", ANSWERED: "0+94x60"}],
        silent=[{FAILED: "0+4x60", ANSWERED: "0+96x60"}, {FAILED: "0x60", ANSWERED: "0x60"}],
    ),
    "TTCLatency": Case(
        firing=[{FAST: "0+50x60", ALL: "0+100x60", LAST: "0+100x60"}],
        silent=[{FAST: "0+100x60", ALL: "0+100x60", LAST: "0+100x60"}],
    ),
    "TTCRefusing": Case(
        firing=[{REFUSED: "0+2x60", ANSWERED: "0+98x60"}],
        silent=[{REFUSED: "0x60", ANSWERED: "0+98x60"}],
    ),
    "TTCQueueAge": Case(
        firing=[{series("ttc_queue_oldest_age_seconds"): "0x50 3x10"}],
        silent=[{series("ttc_queue_oldest_age_seconds"): "0x50 3x1 0x9"}],
    ),
    "TTCShedding": Case(
        firing=[{LEARNING: "0+40x120", SECOND_VIEW: "0+20x120", IMAGES: "0+100x120"}],
        silent=[
            {LEARNING: "0+20x120", SECOND_VIEW: "0+20x120", IMAGES: "0+100x120"},
            # A flood of half an hour; and a few images of a quiet hour.
            {LEARNING: "0x60 0+100x30 3000x30", SECOND_VIEW: "0x120", IMAGES: "0+100x120"},
            {LEARNING: "0+1x120", SECOND_VIEW: "0x120", IMAGES: "0+1x120"},
        ],
        minutes=120,
    ),
    "TTCLoopLag": Case(
        firing=[{series("ttc_event_loop_lag_seconds"): "0.001x50 0.4x10"}],
        silent=[{series("ttc_event_loop_lag_seconds"): "0.001x50 0.4x2 0.001x8"}],
    ),
    "TTCEntropyCollapse": Case(
        firing=[
            {
                series("ttc_entropy_nats_sum"): "0+1x60",
                series("ttc_entropy_nats_count"): "0+100x60",
                series("ttc_entropy_limit_nats"): "2.3x60",
                series("ttc_parameter_drift_ratio"): "0.1x60",
                series("ttc_dominant_class_ratio"): "0.8x60",
                series("ttc_images_total"): "0+100x60",
                INFO: "1x60",
            }
        ],
        silent=[
            {
                series("ttc_entropy_nats_sum"): "0+40x60",
                series("ttc_entropy_nats_count"): "0+100x60",
                series("ttc_entropy_limit_nats"): "2.3x60",
                series("ttc_parameter_drift_ratio"): "0.1x60",
                series("ttc_dominant_class_ratio"): "0.8x60",
                series("ttc_images_total"): "0+100x60",
                INFO: "1x60",
            },
            {  # a sharp network in clear weather: certain, of all classes
                series("ttc_entropy_nats_sum"): "0+1x60",
                series("ttc_entropy_nats_count"): "0+100x60",
                series("ttc_entropy_limit_nats"): "2.3x60",
                series("ttc_parameter_drift_ratio"): "0.1x60",
                series("ttc_dominant_class_ratio"): "0.15x60",
                series("ttc_images_total"): "0+100x60",
                INFO: "1x60",
            },
            {  # a certain source model that learns nothing cannot collapse
                series("ttc_entropy_nats_sum"): "0+1x60",
                series("ttc_entropy_nats_count"): "0+100x60",
                series("ttc_entropy_limit_nats"): "2.3x60",
                series("ttc_parameter_drift_ratio"): "0.1x60",
                series("ttc_dominant_class_ratio"): "0.8x60",
                series("ttc_images_total"): "0+100x60",
                SOURCE: "1x60",
            },
            {  # a camera that sees one thing: the default is certain of it, and learns nothing
                series("ttc_entropy_nats_sum"): "0+1x60",
                series("ttc_entropy_nats_count"): "0+100x60",
                series("ttc_entropy_limit_nats"): "2.3x60",
                series("ttc_parameter_drift_ratio"): "0x60",
                series("ttc_dominant_class_ratio"): "1x60",
                series("ttc_images_total"): "0+100x60",
                INFO: "1x60",
            },
        ],
    ),
    "TTCUncertain": Case(
        firing=[
            {
                series("ttc_entropy_nats_sum"): "0+190x60",
                series("ttc_entropy_nats_count"): "0+100x60",
                series("ttc_entropy_limit_nats"): "2.3x60",
                series("ttc_images_total"): "0+100x60",
            }
        ],
        silent=[
            {
                series("ttc_entropy_nats_sum"): "0+150x60",
                series("ttc_entropy_nats_count"): "0+100x60",
                series("ttc_entropy_limit_nats"): "2.3x60",
                series("ttc_images_total"): "0+100x60",
            },
            {  # one unclear image in a quiet hour
                series("ttc_entropy_nats_sum"): "0x55 2.1x5",
                series("ttc_entropy_nats_count"): "0x55 1x5",
                series("ttc_entropy_limit_nats"): "2.3x60",
                series("ttc_images_total"): "0x55 1x5",
            },
        ],
    ),
    "TTCClassCollapse": Case(
        firing=[
            {
                series("ttc_dominant_class_ratio"): "0.1x40 0.95x20",
                series("ttc_images_total"): "0+100x60",
            }
        ],
        silent=[
            {
                series("ttc_dominant_class_ratio"): "0.6x60",
                series("ttc_images_total"): "0+100x60",
            },
            {  # nobody asks any more
                series("ttc_dominant_class_ratio"): "0.95x60",
                series("ttc_images_total"): "0+100x20 2000x40",
            },
        ],
    ),
    "TTCAccuracyDrop": Case(
        firing=[
            {
                series("ttc_labelled_images_total"): "0+40x240",
                series("ttc_correct_images_total"): "0+36x180 6480+24x60",
            }
        ],
        silent=[
            {
                series("ttc_labelled_images_total"): "0+40x240",
                series("ttc_correct_images_total"): "0+36x240",
            },
            {  # the same fall, of too few labels to tell
                series("ttc_labelled_images_total"): "0+10x240",
                series("ttc_correct_images_total"): "0+9x180 1620+6x60",
            },
            {  # labels came for the first time a quarter of an hour ago
                series("ttc_labelled_images_total"): "_x200 0+40x40",
                series("ttc_correct_images_total"): "_x200 0+36x20 720+24x20",
            },
        ],
        minutes=240,
    ),
    "TTCAdaptationStalled": Case(
        firing=[
            {
                series("ttc_selected_images_total"): "0+100x60",
                series("ttc_streams"): "1x60",
                series("ttc_optimizer_steps_total"): "0+1x20 20x40",
                INFO: "1x60",
            }
        ],
        silent=[
            {
                series("ttc_selected_images_total"): "0+100x60",
                series("ttc_streams"): "1x60",
                series("ttc_optimizer_steps_total"): "0+1x60",
                INFO: "1x60",
            },
            {  # reset, and no image since: there is no stream, and no step to expect
                series("ttc_selected_images_total"): "0+5x50 250x10",
                series("ttc_streams"): "1x50 0x10",
                series("ttc_optimizer_steps_total"): "0x60",
                INFO: "1x60",
            },
            {  # many cameras, few images each: no step is due yet
                series("ttc_selected_images_total"): "0+100x60",
                series("ttc_streams"): "50x60",
                series("ttc_optimizer_steps_total"): "0x60",
                INFO: "1x60",
            },
            {
                series("ttc_selected_images_total"): "0+100x60",
                series("ttc_streams"): "1x60",
                series("ttc_optimizer_steps_total"): "0x60",
                SOURCE: "1x60",
            },
            {  # few classes: the default selects none, and is right
                series("ttc_images_total"): "0+100x60",
                series("ttc_selected_images_total"): "0x60",
                series("ttc_streams"): "1x60",
                series("ttc_optimizer_steps_total"): "0x60",
                INFO: "1x60",
            },
        ],
    ),
    "TTCDrift": Case(
        firing=[{series("ttc_parameter_drift_ratio"): "0.1x40 1.2x20"}],
        silent=[{series("ttc_parameter_drift_ratio"): "0.1x60"}],
    ),
    "TTCStreamHeld": Case(
        firing=[{HELD: "_x30 1800x30"}],
        silent=[
            {HELD: "_x55 3300x5"},
            {HELD: "_x30 1800x20 _x10", series("ttc_held_streams"): "0x30 1x20 0x10"},
        ],
    ),
    "TTCWorseThanSource": Case(
        firing=[{ESTIMATED_ADAPTED: "0.8x30 0.3x30", ESTIMATED_SOURCE: "0.7x60"}],
        silent=[
            {ESTIMATED_ADAPTED: "0.5x60", ESTIMATED_SOURCE: "0.7x60"},
            {ESTIMATED_ADAPTED: "0.9x60", ESTIMATED_SOURCE: "0.3x60"},
        ],
    ),
    "TTCNotSaving": Case(
        firing=[
            {series("ttc_unsaved_streams"): "0x20 12x40", NOT_SAVED: "0x20 0+10x40"},
        ],
        silent=[
            {series("ttc_unsaved_streams"): "12x60", NOT_SAVED: "0x60"},
            {series("ttc_unsaved_streams"): "0x40 12x3 0x17", NOT_SAVED: "0x40 0+10x3 30x17"},
        ],
    ),
    "TTCChangesLost": Case(
        firing=[{series("ttc_changes_lost_total"): "0x20 7x40"}],
        silent=[
            {series("ttc_changes_lost_total"): "7x60"},  # long ago, or before a restart
            {series("ttc_changes_lost_total"): "7x30 0x30"},
        ],
    ),
    "TTCChangesCut": Case(
        firing=[{series("ttc_changes_line"): "100+1x30 40+1x30"}],
        silent=[
            {series("ttc_changes_line"): "100+1x60"},
            # A restart tells 0 until its first line is on disk; so does a service without a log.
            {series("ttc_changes_line"): "100+1x30 0x30"},
            {series("ttc_changes_line"): "0x60"},
            {  # another replica's log is another
                series("ttc_changes_line", 'replica="a"'): "100+1x60",
                series("ttc_changes_line", 'replica="b"'): "_x30 1+1x30",
            },
        ],
    ),
    "TTCSuspectFrames": Case(
        firing=[
            {
                FROZEN: "0+2x60",
                NOISE: "0x60",
                series("ttc_images_total"): "0+100x60",
            }
        ],
        silent=[
            {  # false alarms at their bound, of two kinds
                FROZEN: "0+1x60",
                NOISE: "0+1x60",
                series("ttc_images_total"): "0+1000x60",
            },
            {FROZEN: "0x50 1x10", NOISE: "0x60", series("ttc_images_total"): "0+1x60"},
        ],
    ),
    "TTCSilentStreams": Case(
        firing=[{series("ttc_silent_streams"): "0x40 1x20"}],
        silent=[{series("ttc_silent_streams"): "0x40 1x5 0x15"}],
    ),
    "TTCSmallBatches": Case(
        firing=[
            {
                series("ttc_batch_images_sum"): "0+200x60",
                series("ttc_batch_images_count"): "0+100x60",
                PAPER: "1x60",
            }
        ],
        silent=[
            {
                series("ttc_batch_images_sum"): "0+10000x60",
                series("ttc_batch_images_count"): "0+100x60",
                PAPER: "1x60",
            },
            {  # with moving statistics single images are fine
                series("ttc_batch_images_sum"): "0+100x60",
                series("ttc_batch_images_count"): "0+100x60",
                INFO: "1x60",
            },
        ],
    ),
}


@pytest.fixture(scope="module", autouse=True)
def promtool():
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_alert_has_a_case():
    """A new alert without one fails here."""
    assert set(CASES) == {alert.name for alert in ALERTS}


def test_promtool_accepts_the_rules():
    """Expressions and the templates of the texts."""
    result = run("promtool", "check", "rules", str(RULES))
    assert result.returncode == 0, result.stderr
    assert f"{len(ALERTS) + len(RECORDS)} rules found" in result.stdout


@pytest.mark.parametrize("state", ["firing", "silent"])
@pytest.mark.parametrize("name", CASES)
def test_alert_fires_when_it_should_and_only_then(name, state, tmp_path):
    """By Prometheus' own evaluation of the committed file."""
    case = CASES[name]
    expression = f'count(ALERTS{{alertname="{name}", alertstate="firing"}})'
    expected = [{"labels": "{}", "value": 1}] if state == "firing" else []
    for history in getattr(case, state):
        check(tmp_path, history, expression, expected, case.minutes)


def check(folder, history, expression, expected, minutes=60):
    """Have Prometheus evaluate the committed rules over a history, and hold a result against it."""
    test = {
        "interval": "1m",
        "input_series": [{"series": key, "values": values} for key, values in history.items()],
        "promql_expr_test": [
            {"expr": expression, "eval_time": f"{minutes}m", "exp_samples": expected}
        ],
    }
    content = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [test]}
    path = folder / "test.yml"
    path.write_text(yaml.safe_dump(content))
    result = run("promtool", "test", "rules", str(path))
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_collapsed_camera_among_a_thousand_healthy_ones_rings_by_name(tmp_path):
    """Whatever is summed over all streams looks as ever; of many that are held five are named."""
    healthy = {
        series("ttc_ready"): "1x60",
        series("ttc_streams"): "1000x60",
        series("ttc_held_streams"): "0x30 1x30",
        series("ttc_entropy_nats_sum"): "0+399x60",
        series("ttc_entropy_nats_count"): "0+1000x60",
        series("ttc_entropy_limit_nats"): "2.3x60",
        series("ttc_dominant_class_ratio"): "0.12x60",
        series("ttc_parameter_drift_ratio"): "0.1x60",
        series("ttc_images_total"): "0+1000x60",
        ESTIMATED_ADAPTED: "0.82x60",
        ESTIMATED_SOURCE: "0.7x60",
        f"up{{{TARGET}}}": "1x60",
        BUILD: "1x60",
        INFO: "1x60",
    }
    ringing = 'count by (alertname, stream) (ALERTS{alertstate="firing"})'
    named = {"labels": '{alertname="TTCStreamHeld", stream="cam-7"}', "value": 1}
    check(tmp_path, healthy, ringing, [])
    check(tmp_path, healthy | {HELD: "_x30 1800x30"}, ringing, [named])


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_alert_tells_who_to_wake_and_what_to_do(alert):
    """Severity, a text with the value, and a runbook page with its four parts."""
    rule = alert.rule()
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"]["summary"].endswith(".")
    assert "$value" in rule["annotations"]["description"] or alert.name in (
        "TTCDown",
        "TTCNotReady",  # their value is 0, always
    )
    page = (DOCKER / "runbooks" / f"{alert.name}.md").read_text()
    assert page.startswith(f"# {alert.name}\n")
    places = [page.index(heading) for heading in HEADINGS]
    assert places == sorted(places)
    # As the committed scrape configuration names it: the DNS name, without a port.
    assert f"silence add alertname={alert.name} instance=ttc --duration=" in page
    assert "names: [ttc," in (DOCKER / "prometheus" / "prometheus.yml").read_text()


def test_every_runbook_belongs_to_an_alert():
    """A page of an alert that is gone misleads."""
    pages = {path.stem for path in (DOCKER / "runbooks").glob("*.md")} - {"README"}
    assert pages == {alert.name for alert in ALERTS}


def test_the_list_of_runbooks_is_that_of_the_alerts():
    """With their severities."""
    text = (DOCKER / "runbooks" / "README.md").read_text()
    for alert in ALERTS:
        assert f"| [{alert.name}]({alert.name}.md) | {alert.severity} | {alert.summary} |" in text
