"""What `ttc changes verify` says, in sentences."""

from collections.abc import Iterator
from datetime import UTC, datetime

from service.changes.chained import Chained, log_of
from service.changes.verifying import Verified
from ttc_core.errors import shown


def told_of(found: Verified, most: int) -> Iterator[str]:
    """What was looked at, what is no sign of tampering, what nothing vouches for, then what is
    wrong; so many of each at most."""
    if not found.logs:
        yield "There is no log of changes here."
    for log in found.logs:
        yield _whole(log)
    of_each = {"Note": found.remarks, "UNSURE": found.unvouched, "WRONG": found.defects}
    for word, remarks in of_each.items():
        for each in remarks[:most]:
            yield f"{word}: {shown(each)}"
        if len(remarks) > most:
            yield f"{word}: and {len(remarks) - most:,} more."
    are = "stream is" if found.files == 1 else "streams are"
    yield f"{found.files:,} saved {are} as the log has them."
    if found.unvouched:
        yield f"Nothing vouches for: {len(found.unvouched):,}."
    if found.defects:
        yield f"Wrong: {len(found.defects):,}."
    if found.is_vouched_for:
        yield "All is as it was written."


def _whole(log: Chained) -> str:
    whose = f"T{log_of(log.writer)[1:]}"
    if not log.lines:
        return f"{whose} has no lines{' that can be read' if log.last else ''}."
    span = f"{_at(log.begun)} to {_at(log.ended)}"
    files = f"{log.files:,} {'file' if log.files == 1 else 'files'}"
    return (
        f"{whose}: lines {log.first:,} to {log.last:,} in {files}, {span} (UTC). "
        f"Head: {log.head or 'unknown'}"
    )


def _at(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%F %T}"
