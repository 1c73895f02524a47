"""The panels as a Grafana dashboard: classic JSON, as file provisioning takes it."""

import json
from typing import Any

from grafana_foundation_sdk.builders import common, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as looks
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmaps
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from monitoring.panels import ANNOTATIONS, SECTIONS, Panel

TITLE = "Test-time adaptation"
SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
# Lines that others are to be compared with.
DASHED = "/^(limit|ln K|client left)/"
HEIGHTS = {"value": 4, "table": 4}
ORDINARY_HEIGHT = 8
# Grafana's names of units that have one; others are shown behind the number as they are.
UNITS = {
    name: f"suffix: {name}"
    for name in ("images", "images/s", "batches", "batches/s", "steps/s", "nats", "cores")
}


def dashboard_json() -> str:
    """The dashboard as text, always the same for the same panels."""
    board = (
        builders.Dashboard(TITLE)
        .uid("ttc")
        .description("Whether the service answers, whether it learns, and whether that helps.")
        .tags(["ttc"])
        .timezone("browser")
        .refresh("10s")
        .time("now-1h", "now")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .with_variable(
            builders.DatasourceVariable("datasource").label("Data source").type("prometheus")
        )
        .with_variable(_variable("job", "Job", "label_values(ttc_build_info, job)"))
        .with_variable(
            _variable("instance", "Instance", 'label_values(ttc_build_info{job=~"$job"}, instance)')
        )
    )
    for section in SECTIONS:
        board = board.with_row(builders.Row(section.title))
        for panel in section.panels:
            board = board.with_panel(_panel(panel))
    content: dict[str, Any] = json.loads(JSONEncoder(sort_keys=True).encode(board.build()))
    for number, each in enumerate(content["panels"], start=1):
        each["id"] = number
    # The library knows no queries of Prometheus in annotations.
    content["annotations"] = {
        "list": [
            {
                "name": annotation.name,
                "datasource": {"type": "prometheus", "uid": "${datasource}"},
                "enable": True,
                "iconColor": annotation.colour,
                # Some versions of Grafana read the target, others what stands beside it.
                "target": {"expr": f"({annotation.expression}) * 1000", "refId": "Anno"},
                "expr": f"({annotation.expression}) * 1000",
                "step": "15s",
                "useValueForTime": True,
                "titleFormat": annotation.text,
            }
            for annotation in ANNOTATIONS
        ]
    }
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def _variable(name: str, label: str, query: str) -> builders.QueryVariable:
    return (
        builders.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query({"query": query, "refId": name})
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .current(models.VariableOption(text="All", value="$__all"))
    )


def _panel(panel: Panel) -> Any:
    """A panel in Grafana's terms; the library's panels share no type."""
    makers: dict[str, Any] = {"heatmap": _heatmap, "value": _value, "table": _table}
    built = makers.get(panel.kind, _lines)(panel)
    built = (
        built.title(panel.title)
        .description(panel.description)
        .datasource(SOURCE)
        .unit(UNITS.get(panel.unit, panel.unit))
        .span(panel.width)
        .height(HEIGHTS.get(panel.kind, ORDINARY_HEIGHT))
    )
    low, high = panel.limits
    if low is not None and panel.kind != "heatmap":
        built = built.min(low)
    if high is not None and panel.kind != "heatmap":
        built = built.max(high)
    for number, query in enumerate(panel.queries):
        target = (
            prometheus.Dataquery()
            .ref_id("ABCDEFGH"[number])
            .datasource(SOURCE)
            .expr(query.expression)
            .legend_format(query.legend)
        )
        if panel.kind in ("value", "table"):
            target = target.instant()
        else:
            target = target.range().exemplar(panel.exemplars)
        if panel.kind == "table":
            target = target.format(PromQueryFormat.TABLE)
        elif panel.kind == "heatmap":
            target = target.format(PromQueryFormat.HEATMAP)
        built = built.with_target(target)
    return built


def _lines(panel: Panel) -> timeseries.Panel:
    stacking = {"stacked": looks.StackingMode.NORMAL, "share": looks.StackingMode.PERCENT}
    built = (
        timeseries.Panel()
        .fill_opacity(30 if panel.kind in stacking else 5)
        .line_width(1)
        .show_points(looks.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .display_mode(looks.LegendDisplayMode.LIST)
            .placement(looks.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(
            common.VizTooltipOptions()
            .mode(looks.TooltipDisplayMode.MULTI)
            .sort(looks.SortOrder.DESCENDING)
        )
        .override_by_regexp(
            DASHED,
            [
                models.DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [6, 6]}),
                models.DynamicConfigValue("custom.fillOpacity", 0),
            ],
        )
    )
    if panel.kind in stacking:
        built = built.stacking(common.StackingConfig().mode(stacking[panel.kind]))
    return built


def _heatmap(panel: Panel) -> heatmap.Panel:
    # Prometheus has counted into buckets already.
    return (
        heatmap.Panel()
        .calculate(False)
        .color(
            heatmap.HeatmapColorOptions()
            .mode(heatmaps.HeatmapColorMode.SCHEME)
            .scheme("Blues")
            .steps(64)
        )
        .y_axis(heatmap.YAxisConfig().unit(UNITS.get(panel.unit, panel.unit)))
        .show_legend()
        .show_tooltip()
    )


def _value(panel: Panel) -> stat.Panel:
    built = (
        stat.Panel()
        .graph_mode(looks.BigValueGraphMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    if panel.limits == (0, 1):  # no or yes
        built = built.color_mode(looks.BigValueColorMode.BACKGROUND).mappings(
            [
                models.ValueMap(
                    options={
                        "0": models.ValueMappingResult(text="no", color="red", index=0),
                        "1": models.ValueMappingResult(text="yes", color="green", index=1),
                    }
                )
            ]
        )
    return built


def _table(_panel: Panel) -> table.Panel:
    model = ("instance", "model", "digest", "method", "statistics", "device", "classes")
    shown = (*model, "service", "torch")
    return table.Panel().with_transformation(
        models.DataTransformerConfig(
            id_val="filterFieldsByName", options={"include": {"names": list(shown)}}
        )
    )
