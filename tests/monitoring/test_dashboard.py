"""The dashboard says what the metrics say, and Grafana's file provisioning can take it."""

import json
import re
from itertools import combinations

import promql_parser
import pytest
from prometheus_client import CollectorRegistry

from monitoring.dashboard import dashboard_json
from monitoring.generate import files
from monitoring.panels import ANNOTATIONS, SECTIONS, WITHOUT_PANEL
from service.metrics import Metrics

PANELS = [panel for section in SECTIONS for panel in section.panels]
EXPRESSIONS = [query.expression for panel in PANELS for query in panel.queries]
EXPRESSIONS += [annotation.expression for annotation in ANNOTATIONS]
# Prometheus' own.
FOREIGN = {"up"}


@pytest.fixture(scope="module")
def board():
    return json.loads(dashboard_json())


def names(expression):
    """The metrics that an expression reads."""
    return set(re.findall(r"\b(?:ttc|process)_\w+|\bup\b", expression))


def declared():
    """The names of all series, and the labels that each may have."""
    metrics = Metrics(CollectorRegistry(), classes=10, model={"learns": "yes"})
    metrics.held_since.streams = lambda: {"a": 0.0}  # else there is no series
    found = {}
    for family in metrics.registry.collect():
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    # A histogram with labels has no series before its first observation.
    for suffix in ("bucket", "sum", "count"):
        found[f"ttc_http_request_duration_seconds_{suffix}"] = {"route", "le"}
    return found


@pytest.mark.parametrize("path", files(), ids=lambda path: path.name)
def test_committed_files_are_what_the_generator_makes(path):
    """Whoever edits a panel or an alert runs `make monitoring`."""
    assert path.read_text() == files()[path]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_expressions_parse_and_name_what_is_there(expression):
    """As PromQL, once Grafana has put in its variables; metrics and labels exist."""
    promql_parser.parse(expression.replace("$__rate_interval", "5m"))
    series = declared()
    assert names(expression) <= set(series) | FOREIGN
    labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", expression))
    known = set().union(*(series.get(name, set()) for name in names(expression)))
    assert labels <= known | {"job", "instance"}


def test_every_metric_has_a_panel_or_a_reason():
    """A metric that nobody looks at is either shown or explained."""
    shown = set().union(*map(names, EXPRESSIONS))
    bases = {re.sub(r"_(bucket|sum|count)$", "", name) for name in declared()}
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    assert bases - shown == set(WITHOUT_PANEL)


def test_panels_are_numbered_and_do_not_overlap(board):
    """Grafana needs numbers of their own, and places on its grid of 24 columns."""
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(set(numbers)) == len(numbers)
    places = [panel["gridPos"] for panel in board["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for a, b in combinations(places, 2):
        apart = (
            a["x"] + a["w"] <= b["x"]
            or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        )
        assert apart, (a, b)


def test_data_source_job_and_instance_are_chosen_by_the_viewer(board):
    """Nothing in it is bound to one installation."""
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    for name in ("job", "instance"):
        assert variables[name]["type"] == "query"
        assert "ttc_build_info" in variables[name]["query"]["query"]
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    annotations = board["annotations"]["list"]
    targets = [target for panel in panels for target in panel["targets"]]
    for each in (*panels, *targets, *annotations):
        assert each["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for target in (*targets, *annotations):
        assert 'job=~"$job"' in target["expr"]
        assert 'instance=~"$instance"' in target["expr"]


def test_panels_answer_the_questions_in_order(board):
    """Up, errors, latency, saturation, then the adaptation and its truth; each says what it is."""
    rows = [panel["title"] for panel in board["panels"] if panel["type"] == "row"]
    assert rows == [section.title for section in SECTIONS]
    for panel in board["panels"]:
        if panel["type"] != "row":
            assert panel["title"]
            assert panel["description"].endswith(".")


def test_resets_and_restarts_are_marked(board):
    """On all panels, so that a jump has its cause beside it."""
    assert {each["name"] for each in board["annotations"]["list"]} == {"Resets", "Starts"}


def test_the_dashboard_is_classic_json(board):
    """What file provisioning reads: a plain dashboard with a schema version, no wrapper."""
    assert board["schemaVersion"] >= 36
    assert board["uid"] == "ttc"
    assert "kind" not in board
    assert "spec" not in board
