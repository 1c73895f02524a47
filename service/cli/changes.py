"""`ttc changes`: whether the log of changes is whole, and what became of a stream."""

import sys
from pathlib import Path

import click

FOLDER = click.option(
    "--state-dir",
    "folder",
    required=True,
    envvar="TTC_STATE_DIR",
    show_envvar=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="of ttc serve; it may be in use",
)
# Of what is wrong, so many sentences are told.
MOST_TOLD = 50
# Exit status where nothing is wrong, and not everything could be held against something.
NOT_VOUCHED_FOR = 3


@click.group(epilog="Example: ttc changes verify --state-dir /var/lib/ttc")
def changes() -> None:
    """What streams learned and what was done with them: the log in a --state-dir."""


@changes.command(epilog="Example: ttc changes verify --state-dir /var/lib/ttc")
@FOLDER
@click.option(
    "--head", metavar="HASH", help="12 to 64 hex digits of a line's hash that was kept elsewhere"
)
@click.option(
    "--metric",
    metavar="NUMBER",
    type=click.FloatRange(1, 2**52),
    help="a value that ttc_changes_head had once",
)
@click.option(
    "--line",
    metavar="NUMBER",
    type=click.IntRange(1, 2**53),
    help="which line had it, as ttc_changes_line was then; else any may",
)
@click.option(
    "--writer",
    metavar="NAME",
    help="in whose log it was, as changes.writer in /status of replicas says; else in any",
)
@click.option(
    "--restored",
    metavar="PATTERN",
    multiple=True,
    help="streams of which an older copy was brought back on purpose",
)
def verify(
    folder: Path,
    head: str | None,
    metric: float | None,
    line: int | None,
    writer: str | None,
    restored: tuple[str, ...],
) -> None:
    """Find any line of the log that was altered, cut, swapped or added, and saved streams that are
    not as the log has them.

    A sentence for each, with the file and its line; exit status 1. Where nothing is wrong, but
    something is left that nothing vouches for, it is named, and the exit status is 3. Whoever may
    write to the folder can make all of it anew: keep heads elsewhere, as Prometheus does, and name
    one.
    """
    from service.changes.files import writers
    from service.changes.verifying import FEWEST_DIGITS, verify
    from service.changes.verifying_view import told_of
    from service.metrics import HEAD_DIGITS
    from ttc_core.errors import UserError, shown

    if head is not None and not (
        FEWEST_DIGITS <= len(head) <= 64 and set(head.lower()) <= set("0123456789abcdef")
    ):
        raise click.UsageError(f"--head takes {FEWEST_DIGITS} to 64 hex digits; got {head[:80]!r}.")
    if metric is not None and head is not None:
        raise click.UsageError("--head and --metric name a line each; one is accepted.")
    if metric is not None:
        if not metric.is_integer():
            raise click.UsageError(f"--metric takes a whole number; got {metric}.")
        head = f"{int(metric):0{HEAD_DIGITS}x}"
    if line is not None and head is None:
        raise click.UsageError("--line takes the hash of that line, with --head or --metric.")
    if writer is not None and head is None:
        raise click.UsageError(
            "--writer takes the hash of a line of that log, with --head or --metric."
        )
    if writer is not None and writer not in (known := writers(folder)):
        names = ", ".join(name for name in known if name) or "one that has no name"
        raise UserError(f"There is no log of {shown(writer)} in {shown(folder)}; there is {names}.")
    found = verify(folder, head=head, line=line, writer=writer, restored=restored)
    for sentence in told_of(found, MOST_TOLD):
        click.echo(sentence)
    if not found.is_vouched_for:
        sys.exit(1 if found.defects or not found.logs else NOT_VOUCHED_FOR)


@changes.command(epilog="Example: ttc changes show --state-dir /var/lib/ttc --stream gate-4")
@FOLDER
@click.option("--stream", help="whose story; without it the streams are listed")
@click.option(
    "--since", metavar="TIME", help="90s, 30min, 2h, 7d ago, or a time in ISO 8601 (UTC) [all]"
)
@click.option("--json", "as_json", is_flag=True, help="the log's lines, one JSON object each")
def show(folder: Path, stream: str | None, since: str | None, as_json: bool) -> None:
    """Tell what a stream learned, and what was done with it; times are UTC.

    Steps that follow one another are one row, with the saves between them. Whether the log is as
    it was written ttc changes verify says.
    """
    import time
    from collections import Counter

    from rich.console import Console

    from service.changes import story
    from service.changes.files import writers
    from service.schemas import STREAM_NAME
    from ttc_core.errors import UserError, shown

    if stream is None:
        for name, count in sorted(Counter(story.streams_in(folder)).items()):
            click.echo(f"{name}: {count:,} {'line' if count == 1 else 'lines'}")
        return
    if not STREAM_NAME.fullmatch(stream):
        raise click.UsageError(
            f"--stream takes 1 to 64 letters, digits and . _ : -; got {stream[:80]!r}."
        )
    begin = 0.0 if since is None else story.moment(since, time.time())
    if stream not in story.streams_in(folder):
        names = sorted(set(story.streams_in(folder)))
        some = ", ".join(names[:10]) + (f" and {len(names) - 10:,} more" if names[10:] else "")
        raise UserError(
            f"The log in {shown(folder)} has nothing of stream {stream}; it has {some or 'none'}."
        )
    told = story.lines_of(folder, stream, begin)
    if as_json:
        for each in told:
            click.echo(story.as_json(each))
        return
    rows = story.story(told, one_writer=len(writers(folder)) == 1)
    if not story.show(rows, Console(emoji=False, highlight=False)):
        click.echo(
            f"The log has nothing of stream {stream}{'' if since is None else ' since then'}."
        )
