"""`make demo`: SOURCE, TTC to the letter and the default, shuffled and in a camera's order.

All is said over HTTP, to `ttc serve` as a process of its own; at the end a reset is shown.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import replace

from rich.table import Table

from service.client import Client
from service.launch import launch
from service.replay import ReplayPlan, replay
from service.view import View
from ttc_core.rows import Row, Rows

CORRUPTION, OTHER = "gaussian_noise", "contrast"
BATCH_SIZE = 10
"""Few at a time, as cameras send them; the same for all."""
RESET_IMAGES = 300
SERVERS = {"SOURCE": ("--method", "source"), "TTC, --paper": ("--paper",), "default": ()}
ORDERS = {"shuffled": "iid", "in runs of 50": "runs:50"}

Accuracies = Mapping[str, Mapping[str, float]]


def run_demo(view: View, *, limit: int) -> None:
    """Serve, replay, compare; each stream has `limit` images."""
    plan = ReplayPlan(
        "bundled",
        corruptions=(CORRUPTION,),
        limit=limit,
        batch_size=BATCH_SIZE,
        reset_between=True,
    )
    found: dict[str, dict[str, float]] = {}
    for name, flags in SERVERS.items():
        view.say(f"\n{name}: {' '.join(('ttc serve', *flags))}")
        with launch(*flags) as server:
            plan = replace(plan, url=server.url)
            found[name] = {
                title: _replayed(view, replace(plan, order=order))["accuracy"]
                for title, order in ORDERS.items()
            }
            if name == "default":
                _show_reset(view, replace(plan, limit=min(limit, RESET_IMAGES)))
            status = server.stop()
            view.say(f"SIGTERM: the server answered what it had accepted and exited with {status}.")
    view.say("")
    view.table(accuracy_table(found, f"{CORRUPTION} 5, {limit:,} images, {BATCH_SIZE} a batch"))


def _replayed(view: View, plan: ReplayPlan) -> Row:
    (row,) = asyncio.run(replay(plan, Rows(None), view, table=False))
    return row


def accuracy_table(found: Accuracies, title: str) -> Table:
    """Accuracy in percent, a line a server and a column an order."""
    table = Table("accuracy, %", title=title, title_justify="left")
    for header in ORDERS:
        table.add_column(header, justify="right")
    for name, accuracies in found.items():
        table.add_row(name, *(f"{100 * accuracies[order]:.1f}" for order in ORDERS))
    return table


def _show_reset(view: View, plan: ReplayPlan) -> None:
    """Answer the same clean images at the source, after another corruption, and after a reset."""
    clean = replace(plan, corruptions=("clean",))
    view.say(f"\nReset: the same clean images at the source, adapted to {OTHER}, and reset.")
    source = _replayed(view, clean)
    _replayed(view, replace(plan, corruptions=(OTHER,)))
    adapted = _replayed(view, replace(clean, reset_between=False))
    with Client(plan.url) as client:
        thrown_away = client.reset().discarded
    after = _replayed(view, clean)
    first, second, third = (
        f"{row['accuracy']:.1%} (mean entropy {row['entropy']:.4f})"
        for row in (source, adapted, after)
    )
    view.say(
        f"Clean accuracy: {first} at the source, {second} after adapting to {OTHER}, {third} after "
        f"/reset threw away {thrown_away.steps} steps."
    )
    if third != first:
        raise RuntimeError("After the reset the answers are not those of the source.")
