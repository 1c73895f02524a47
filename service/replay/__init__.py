"""The load test: sends a data set's images to a running service and says how it answered."""

import asyncio
import platform
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import PIL
from numpy.typing import NDArray

from service.client import ServiceError, to_png
from service.replay.load import BoundedClient, Load
from service.replay.outbox import Outbox
from service.replay.plan import UNDER_TIME, ReplayPlan
from service.replay.tally import ReplayTally
from service.replay.under_time import KEPT_UP, TIMES, run_under_time, source_period
from service.schemas import DEFAULT_STREAM, StatusResponse
from service.view import View, results_table
from ttc_core import calibration
from ttc_core.datasets import DataSet, Geometry, Stream, open_data
from ttc_core.order import images_asked, note_on_runs, with_class_index
from ttc_core.rows import Row, Rows, save_arrays

__all__ = ["ReplayPlan", "replay", "to_png"]

LATE_SECONDS = 0.010
"""An open-loop request that leaves later than this after its time counts as late."""


async def replay(
    plan: ReplayPlan,
    rows: Rows,
    view: View,
    predictions: Path | None = None,
    *,
    table: bool = True,
) -> list[Row]:
    """Send the corruptions one after another; a row is appended as each is finished.

    Counts of images: answered + refused (429, 503) + errors + dropped + skipped make up the stream.
    On interruption the finished rows are kept, and the corruption in hand is shown as partial.

    Args:
        plan: what, how and where to.
        rows: where the result rows go, with the columns of `ReplayTally` as their details.
        view: where progress and the final table are shown.
        predictions: an .npz file for `predicted`, `labels`, `entropy`, `selected`, `version`, (N,)
            each, in stream order; an image without an answer has -1, nan, False and -1 there.
        table: show one at the end.

    Returns:
        The rows of this replay, in the order of the corruptions.

    Raises:
        ValueError: predictions of more than one corruption are asked for, or a value or the data
            cannot be used (`DataError`).
        UserError: a period is needed, as it is not SOURCE that is served.
        ServiceError: nothing answers; or in lockstep or under time a request failed.
    """
    if predictions is not None and len(plan.corruptions) > 1:
        raise ValueError(
            "Predictions are kept of one corruption; "
            f"got {len(plan.corruptions)}: {', '.join(plan.corruptions)}."
        )
    connections = {"closed": plan.concurrency + 1, "open": plan.most_in_flight + 1}
    finished: list[Row] = []
    async with BoundedClient(
        plan.url,
        plan.token,
        plan.timeout,
        connections=connections.get(plan.mode, 2),
        admin_token=plan.admin_token,
        retry_budget=0.0,  # each refusal counts
    ) as client:
        status = await client.status()
        geometry = Geometry(status.model.size, status.model.crop, status.model.interpolation)
        data = await asyncio.to_thread(
            open_data,
            plan.data,
            geometry,
            status.model.class_names,
            limit=images_asked(plan.order, plan.limit),
        )
        plan = replace(plan, order=with_class_index(plan.order, status.model.class_names))
        period = plan.period
        if period is None and plan.mode in ("discrete", "continuous"):
            period = await source_period(plan, client, data, status)
            view.say(
                f"{KEPT_UP} of 100 requests to SOURCE are done within {1000 * period:.2f} ms: that "
                "is the period."
            )
        # What the stream has seen before goes on: after another history it is another measurement.
        stream = status.streams.get(plan.stream or DEFAULT_STREAM)
        history: Row = {
            "after_severity": plan.severity,
            "after_images": 0 if stream is None else stream.images,
        }
        try:
            for corruption in plan.corruptions:
                row, columns = await _replay_one(plan, period, client, data, corruption, view)
                if not plan.reset_between:
                    row |= {"after": [one["corruption"] for one in finished], **history}
                finished.append(rows.append(row, columns))
                view.finish(row)
                if predictions is not None:
                    left_out = {"latency", *TIMES, *calibration.COLUMNS}
                    kept = {name: columns[name] for name in columns.keys() - left_out}
                    save_arrays(predictions, kept)
        except BaseException:
            view.interrupt()
            raise
        finally:
            if finished and table:
                view.table(results_table(finished))
    return finished


async def _replay_one(
    plan: ReplayPlan,
    period: float | None,
    client: BoundedClient,
    data: DataSet,
    corruption: str,
    view: View,
) -> tuple[Row, dict[str, NDArray[Any]]]:
    stream = await asyncio.to_thread(
        data.open,
        corruption,
        plan.severity,
        limit=plan.limit,
        order=plan.order,
        seed=plan.seed,
    )
    at = "" if stream.severity is None else f" {stream.severity}"
    view.start(f"{corruption}{at}", len(stream))
    if note := note_on_runs(stream.labels, plan.order):
        view.say(f"{corruption}: {note}.")
    tally = ReplayTally(stream.labels, view)
    async with Outbox(stream, plan.batch_size, plan.stream) as outbox:
        await outbox.filled()
        if plan.reset_between:
            await client.reset(plan.stream)
        before = await _at_rest(client, view)
        view.begin()
        if plan.mode in UNDER_TIME:
            utility = await run_under_time(plan, period, client, outbox, tally)
        else:
            utility = {}
            await Load(plan, client, outbox, tally).run()
    after = None
    try:
        after = await _at_rest(client, view)
    except ServiceError as error:  # the answers are there; what the server counted is not
        view.say(f"{error.detail} Its counters are missing from the row.")
    digest = await asyncio.to_thread(lambda: stream.digest)
    row = _row(plan, stream, tally, before, after, view)
    return row | utility | {"data_digest": digest}, tally.columns


async def _at_rest(client: BoundedClient, view: View) -> StatusResponse:
    status = await client.at_rest()
    if not status.idle:
        view.say(
            f"The server is not at rest after {client.timeout:g} s (is another client there?): "
            "its counters may be off."
        )
    return status


def _row(
    plan: ReplayPlan,
    stream: Stream,
    tally: ReplayTally,
    before: StatusResponse,
    after: StatusResponse | None,
    view: View,
) -> Row:
    """The row of one corruption; says what is odd about it.

    Args:
        before, after: what the server counted; None: it did not tell any more.
    """
    server = after or before
    labelled, correct, considered, steps = (
        int(server.counters.get(name, 0) - before.counters.get(name, 0))
        for name in (
            *("labelled_images_total", "correct_images_total"),
            *("considered_images_total", "optimizer_steps_total"),
        )
    )
    restarted = labelled < 0
    if missing := len(stream) - tally.images - tally.skipped:
        view.say(f"{missing:,} of {len(stream):,} images have no answer.")
    if restarted:
        view.say(
            "The server was started anew in the midst: the answers are of two states, which the "
            "row and the report say."
        )
    elif labelled != tally.images:
        view.say(
            f"The server counted {labelled:,} labelled images, this client has {tally.images:,} "
            "answers: another client was there, or answers were lost."
        )
    elif correct != tally.correct:
        view.say(f"The server counted {correct:,} images as right, this client {tally.correct:,}.")
    # SOURCE, NORM and T3A select nothing, which is not the same as a rate of 0.
    selects = tally.selected > 0 or considered > 0
    opened = plan.mode == "open"
    return {
        "method": server.method,
        "data": plan.data,
        "model": server.model.spec,
        "model_digest": server.model.digest,
        "model_code": server.model.code,
        "corruption": stream.corruption,
        "severity": stream.severity,
        "order": plan.order,
        "protocol": "episodic" if plan.reset_between else "continual",
        "batch_size": plan.batch_size,
        "limit": plan.limit,
        "images": tally.images,
        "asked": len(stream),
        **tally.results(selects=selects),
        **tally.windows(),
        **tally.calibration(),
        "steps": None if restarted or after is None else steps,
        "seed": plan.seed,
        "settings": server.settings.get("method", server.settings),
        "calibrated": server.calibrated,
        "record_temperature": server.record_temperature,
        "versions": {**server.versions, **_client_versions()},
        "device": server.device,
        "server": server.settings.get("server"),
        "mode": plan.mode,
        "stream": plan.stream,
        "concurrency": plan.concurrency if plan.mode == "closed" else None,
        "rate": plan.rate,
        "arrivals": plan.arrivals if opened else None,
        "period": plan.period,
        "budget": plan.budget,
        "server_accuracy": correct / labelled if labelled > 0 else None,
        **{f"latency_p{each}": tally.percentile(each) for each in (50, 90, 99)},
        "latency_max": tally.percentile(100),
        "lateness_p99": float(np.percentile(tally.lateness, 99)) if tally.lateness else None,
        "late": sum(late > LATE_SECONDS for late in tally.lateness) if opened else None,
        "refused": dict(tally.refused),
        "errors": dict(tally.errors),
        "dropped": tally.dropped,
        "skipped": tally.skipped if plan.mode == "discrete" else None,
        "retries": tally.retries,
        "restarted": restarted or None,
    }


def _client_versions() -> dict[str, str]:
    return {
        "client": version("ttc-service"),
        "client_python": platform.python_version(),
        "client_numpy": np.__version__,
        "client_pillow": PIL.__version__,
        "client_httpx": httpx.__version__,
    }
