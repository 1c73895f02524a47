"""`make demo`: the whole walk over HTTP, for SOURCE and for TTC, and what a reset does."""

import asyncio
from dataclasses import replace

from service.client import Client
from service.launch import Launched, launch
from service.replay import ReplayPlan, replay
from service.view import View, comparison_table
from ttc_core.report.groups import groups
from ttc_core.report.results import Result
from ttc_core.rows import Row, Rows

CORRUPTIONS = ("gaussian_noise", "fog", "contrast")
METHODS = ("source", "ttc")


def run_demo(view: View, *, limit: int) -> None:
    """Serve, replay, compare; `limit` images of each corruption."""
    plan = ReplayPlan("bundled", corruptions=CORRUPTIONS, limit=limit, reset_between=True)
    rows: list[Row] = []
    for method in METHODS:
        view.say(f"\n{method.upper()}: ttc serve --method {method}")
        with launch("--method", method) as server:
            rows += asyncio.run(
                replay(replace(plan, url=server.url), Rows(None), view, table=False)
            )
            if method == "ttc":
                _show_reset(view, server, plan)
            status = server.stop()
            view.say(f"SIGTERM: the server answered what it had accepted and exited with {status}.")
    (group,) = groups(map(Result, rows))
    view.table(comparison_table(group, "The bundled stream at severity 5, through HTTP"))
    source, ttc = (line.average(group.columns) or 0.0 for line in group.lines)
    view.say(f"Average accuracy: SOURCE {source:.1f}%, TTC {ttc:.1f}% ({ttc - source:+.1f} points)")


def _show_reset(view: View, server: Launched, plan: ReplayPlan) -> None:
    """Answer the same clean images with source weights, adapted ones, and after a reset."""
    clean = replace(plan, url=server.url, corruptions=("clean",), limit=500, reset_between=False)
    view.say("\nReset: the same 500 clean images, at the source, adapted to contrast, and reset.")
    with Client(server.url) as client:
        client.reset()
        (source,) = asyncio.run(replay(clean, Rows(None), view, table=False))
        client.reset()
        asyncio.run(
            replay(
                replace(clean, corruptions=("contrast",), limit=None), Rows(None), view, table=False
            )
        )
        (adapted,) = asyncio.run(replay(clean, Rows(None), view, table=False))
        thrown_away = client.reset().discarded
        (after,) = asyncio.run(replay(clean, Rows(None), view, table=False))
    view.say(
        f"Clean accuracy: {source['accuracy']:.1%} at the source, {adapted['accuracy']:.1%} after "
        f"adapting to contrast, {after['accuracy']:.1%} after /reset threw away "
        f"{thrown_away.steps} steps."
    )
    if after["correct"] != source["correct"]:
        raise RuntimeError("After the reset the answers are not those of the source.")
