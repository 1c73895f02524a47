"""`ttc replay`: a data set sent to a running service."""

import asyncio
from typing import Any

import click

from service.cli.options import BATCH_SIZE, DataOptions, check_writable, grouped


@click.command(
    epilog="Example: ttc replay bundled --corruptions fog,contrast --reset-between --limit 1000"
)
@grouped("asked", DataOptions)
@click.option("--url", default="http://127.0.0.1:8000", show_default=True)
@click.option("--token", envvar="TTC_TOKEN", help="bearer token [TTC_TOKEN]")
@click.option(
    "--admin-token",
    envvar="TTC_ADMIN_TOKEN",
    help="bearer token for --reset-between [TTC_ADMIN_TOKEN]",
)
@click.option(
    "--mode",
    type=click.Choice(["lockstep", "closed", "open", "discrete", "continuous", "amortised"]),
    default="lockstep",
    show_default=True,
    help="wait for each batch; keep --concurrency requests under way; send at --rate; or measure "
    "utility under time: images that find the server busy are skipped (discrete), answers lose "
    "worth as they are late (continuous), learning ends when --budget is spent (amortised)",
)
@click.option(
    "--concurrency", type=click.IntRange(1, 10_000), help="requests under way (closed) [8]"
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    help="images a second (open); of one a request unless --batch-size says otherwise",
)
@click.option(
    "--arrivals",
    type=click.Choice(["poisson", "even"]),
    default="poisson",
    show_default=True,
    help="how the sends of the open loop are spread",
)
@click.option(
    "--period",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="between requests (discrete), or that an answer may take (continuous) [what SOURCE takes; "
    "measured where it is SOURCE that is served]",
)
@click.option(
    "--budget",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="of adaptation, then nothing is learned (amortised)",
)
@click.option("--stream", help="the stream on the server [default]")
@click.option("--reset-between", is_flag=True, help="reset the stream before each corruption")
def replay(asked: DataOptions, mode: Any, concurrency: int | None, **plan: Any) -> None:
    """Send DATA to a running server and measure accuracy, adaptation and latency.

    The rows have the calibration error of what was answered (ece), and no likelihood (nll): answers
    name the best class, which need not be the true one.

    A request has 100 images in lockstep and in the closed loop, as `ttc evaluate` has batches, and
    one in the open loop and under time, as from a camera; --batch-size N: N in any mode. Of a rate
    of images a second, requests are the N-th part.
    """
    from rich.console import Console

    from service.replay import ReplayPlan
    from service.replay import replay as run_replay
    from service.replay.plan import ONE_BY_ONE
    from service.view import View
    from ttc_core.rows import Rows

    corruptions = tuple(asked.chosen())
    check_writable(asked.predictions, asked.rows_path)
    try:
        replay_plan = ReplayPlan(
            data=asked.data,
            corruptions=corruptions,
            severity=asked.severity,
            batch_size=asked.batch_size or (1 if mode in ONE_BY_ONE else BATCH_SIZE),
            limit=asked.limit,
            seed=asked.seed,
            order=asked.order,
            mode=mode,
            concurrency=concurrency or (8 if mode == "closed" else 1),
            **plan,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    view = View(Console(emoji=False))
    asyncio.run(run_replay(replay_plan, Rows(asked.rows_path), view, asked.predictions))
