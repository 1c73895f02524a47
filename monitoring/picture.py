"""Draw the dashboard's panels over a real replay: python -m monitoring.picture [--out FILE].

A real server is sent the bundled stream while a real Prometheus scrapes it; the panels' own
queries are then drawn by matplotlib. No Grafana takes part: its looks are not shown, its data is.
The replay has a change of conditions, a reset, images that are refused, a flood, a restart and a
camera that sends one short clip in a loop.
"""

import asyncio
import contextlib
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console

from monitoring.dashboard import DASHED
from monitoring.generate import DOCKER, RULES
from monitoring.panels import ANNOTATIONS, SECTIONS, Panel
from monitoring.prometheus import Line, Prometheus, free_port, missing, run_prometheus
from service.client import Client, ServiceError
from service.launch import launch
from service.replay import ReplayPlan, replay, to_png
from service.view import View
from ttc_core.datasets import Geometry, open_data
from ttc_core.rows import Rows

OUT = DOCKER.parent / "docs" / "dashboard.png"
# What Grafana would put in for its variables, for scrapes this close together.
VARIABLES = {"$__rate_interval": "15s", "$job": ".*", "$instance": ".*"}
STEP = 2.0
# Until a scrape that has begun is answered, so that none meets the service as it stops.
SCRAPED_BY = 2.0
# Grafana's names of units, for people.
UNITS = {"short": "", "percentunit": "share", "reqps": "requests/s"}
RATE = 60.0
FLOOD = 30
LOOP = 5
MOST_NAMED = 6


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=OUT, show_default=True)
@click.option("--images", default=2000, show_default=True, help="of each part of the replay")
def main(out: Path, images: int) -> None:
    """Run the replay and draw what Prometheus saw of it."""
    if names := missing():
        raise click.ClickException(f"Not installed: {', '.join(names)}.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        port = free_port()
        with run_prometheus(folder, [f"127.0.0.1:{port}"], rules=[RULES]) as prometheus:
            start = time.time()
            events, end = _replay(port, folder / "state", images)
            draw(prometheus, start, end, out, events)
    click.echo(out)


@dataclass(frozen=True)
class Event:
    """Something that was done to the service, for the picture's reader."""

    time: float
    text: str


def _replay(port: int, state: Path, images: int) -> tuple[list[Event], float]:
    """Send the parts of the replay, one after another.

    Returns:
        What was done, and a Unix time at which the service still ran.
    """
    events: list[Event] = []

    def note(text: str) -> None:
        events.append(Event(time.time(), text))
        click.echo(text)

    def send(corruption: str, **options: Any) -> None:
        note(f"{len(events) + 1} {corruption}" + (", flood" if "mode" in options else ""))
        plan: dict[str, Any] = {
            "mode": "open",
            "rate": RATE,
            "limit": images,
            "batch_size": 5,
            **options,
        }
        silent = View(Console(quiet=True))
        url = f"http://127.0.0.1:{port}"
        asyncio.run(replay(ReplayPlan("bundled", url, (corruption,), **plan), Rows(None), silent))

    arguments = ("--port", str(port), "--state-dir", str(state), "--max-queue", "500")
    with launch(*arguments) as server:
        send("clean")
        send("fog")
        send("contrast")
        note(f"{len(events) + 1} reset")
        with Client(server.url) as client:
            client.reset()
        send("gaussian_noise")
        send("contrast", mode="closed", rate=None, concurrency=FLOOD, batch_size=50)
        note(f"{len(events) + 1} no images")
        with Client(server.url) as client:
            for _ in range(int(images / RATE)):
                for _ in range(5):
                    with contextlib.suppress(ServiceError):
                        client.predict([b"this is no image"])
                time.sleep(1)
        note(f"{len(events) + 1} restart")
    with launch(*arguments) as server:
        send("gaussian_noise")
        send("frost")
        note(f"{len(events) + 1} a short clip in a loop")
        stream = open_data("bundled", Geometry(None)).open("clean", 5, limit=LOOP)
        clip = [to_png(image) for image in next(stream.batches(LOOP))[0]]
        with Client(server.url) as client:
            for _ in range(images // (2 * LOOP)):
                client.predict(clip)
                time.sleep(LOOP / RATE)
        end = time.time()
        time.sleep(SCRAPED_BY)
        return events, end


def draw(
    prometheus: Prometheus, start: float, end: float, out: Path, events: Sequence[Event] = ()
) -> None:
    """Draw every panel of the dashboard into a PNG file, over the minutes since `start`.

    Args:
        start, end: Unix times.
    """
    mpl.rcParams.update({"font.size": 7, "axes.titlesize": 8})
    lines = [_rows(section.panels) for section in SECTIONS]
    heights = [
        height
        for rows in lines
        for height in (0.25, *(0.7 if _is_flat(row) else 1.9 for row in rows))
    ]
    figure = Figure(figsize=(16, sum(heights) * 1.15), layout="constrained")
    grid = figure.add_gridspec(len(heights), 24, height_ratios=heights)
    row_number = 0

    def asked(expression: str) -> list[Line]:
        found = prometheus.query_range(_filled(expression), start, end, STEP)
        return [replace(line, times=[(t - start) / 60 for t in line.times]) for line in found]

    marks = [
        ((moment - start) / 60, annotation.colour)
        for annotation in ANNOTATIONS
        for line in asked(annotation.expression)
        for moment in sorted(set(line.values))
    ]
    for section, rows in zip(SECTIONS, lines, strict=True):
        heading = figure.add_subplot(grid[row_number, :])
        heading.set_axis_off()
        heading.text(0, 0.2, section.title, fontsize=11, fontweight="bold")
        row_number += 1
        for row in rows:
            column = 0
            for panel in row:
                axis = figure.add_subplot(grid[row_number, column : column + panel.width])
                column += panel.width
                found = [
                    (query.legend, line)
                    for query in panel.queries
                    for line in (
                        prometheus.query(_filled(query.expression), at=end)
                        if panel.kind in ("value", "table")
                        else asked(query.expression)
                    )
                ]
                _draw(axis, panel, found)
                if not _is_flat(row):
                    _mark(axis, marks, events, start, end)
            row_number += 1
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=80)


def _rows(panels: Sequence[Panel]) -> list[list[Panel]]:
    """The panels as they share rows of 24 columns."""
    rows: list[list[Panel]] = [[]]
    for panel in panels:
        if sum(each.width for each in rows[-1]) + panel.width > 24:
            rows.append([])
        rows[-1].append(panel)
    return rows


def _is_flat(row: Sequence[Panel]) -> bool:
    return all(panel.kind in ("value", "table") for panel in row)


def _filled(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


def _named(legend: str, labels: Any) -> str:
    """The legend with the labels' values; the instance is the same everywhere here."""
    text = re.sub(r"\{\{(\w+)\}\}", lambda found: str(labels.get(found[1], "")), legend)
    return text.replace(str(labels.get("instance", "\0")), "").strip() or "service"


def _draw(axis: Axes, panel: Panel, found: Sequence[tuple[str, Line]]) -> None:
    unit = UNITS.get(panel.unit, panel.unit)
    axis.set_title(f"{panel.title}, {unit}" if unit else panel.title, loc="left")
    if panel.kind in ("value", "table"):
        axis.set_axis_off()
        _write(axis, panel, found)
        return
    axis.grid(color="#dddddd", linewidth=0.5)
    axis.spines[["top", "right"]].set_visible(False)
    if not found:
        axis.text(0.5, 0.5, "no data", transform=axis.transAxes, ha="center", color="#888888")
    elif panel.kind == "heatmap":
        _heatmap(axis, found)
    elif panel.kind in ("stacked", "share"):
        _stack(axis, panel, found)
    else:
        dashed = re.compile(DASHED.strip("/"))
        for legend, line in found:
            name = _named(legend, line.labels)
            style = "--" if dashed.match(name) else "-"
            # Of many, those that never left 0 are drawn, and not named: there is no room.
            is_named = len(found) <= MOST_NAMED or any(line.values)
            axis.plot(line.times, line.values, style, linewidth=1, label=name if is_named else None)
        _name_lines(axis, columns=3)
    low, high = panel.limits
    if panel.kind != "heatmap":
        axis.set_ylim(bottom=low, top=high)


def _name_lines(axis: Axes, columns: int) -> None:
    if axis.get_legend_handles_labels()[1]:
        legend = axis.legend(fontsize=6, loc="upper left", frameon=False, ncols=columns)
        legend.set_in_layout(False)  # long names would leave no room for what is drawn


def _write(axis: Axes, panel: Panel, found: Sequence[tuple[str, Line]]) -> None:
    for _, line in found:
        if panel.kind == "value":
            yes = "yes" if line.values[-1] else "no"
            text = yes if panel.limits[1] else f"{line.values[-1]:.0f} s"
            axis.text(0, 0.3, text, fontsize=16)
        else:
            shown = ("model", "method", "statistics", "device", "classes", "service", "torch")
            text = "   ".join(f"{name}: {line.labels.get(name, '')}" for name in shown)
            axis.text(0, 0.4, text, fontsize=9)


def _stack(axis: Axes, panel: Panel, found: Sequence[tuple[str, Line]]) -> None:
    times = sorted({moment for _, line in found for moment in line.times})
    table = np.zeros((len(found), len(times)))
    for row, (_, line) in enumerate(found):
        table[row, np.searchsorted(times, line.times)] = np.nan_to_num(line.values)
    if panel.kind == "share":
        table /= np.maximum(table.sum(axis=0), 1e-12)
    names = [_named(legend, line.labels) for legend, line in found]
    axis.stackplot(times, table, labels=names, alpha=0.7)
    _name_lines(axis, columns=5)


def _heatmap(axis: Axes, found: Sequence[tuple[str, Line]]) -> None:
    lines = sorted((line for _, line in found), key=lambda line: float(line.labels["le"]))
    times = sorted({moment for line in lines for moment in line.times})
    cumulative = np.zeros((len(lines), len(times)))
    for row, line in enumerate(lines):
        cumulative[row, np.searchsorted(times, line.times)] = np.nan_to_num(line.values)
    counts = np.diff(cumulative, axis=0, prepend=0)
    bounds = [float(line.labels["le"]) for line in lines]
    # Nothing is above the last finite bound: entropy ends at ln K, confidence at 1.
    edges = [0.0, *(bound for bound in bounds if np.isfinite(bound))]
    if edges[-1] == 0.999:
        edges, counts = [*edges, 1.0], counts
    counts = counts[: len(edges) - 1]
    corners = [times[0] - STEP / 60, *times]
    axis.pcolormesh(corners, edges, counts, cmap="Blues", shading="flat")


def _mark(
    axis: Axes,
    marks: Sequence[tuple[float, str]],
    events: Sequence[Event],
    start: float,
    end: float,
) -> None:
    """The dashboard's annotations as lines, and what the replay did as numbers above."""
    axis.set_xlim(0, (end - start) / 60)
    for moment, colour in marks:
        axis.axvline(moment, color=colour, linewidth=1, alpha=0.7)
    for event in events:
        at = (event.time - start) / 60
        number = event.text.split()[0]
        text = axis.text(at, 1.0, number, transform=axis.get_xaxis_transform(), fontsize=6)
        text.set_in_layout(False)


if __name__ == "__main__":
    main()
