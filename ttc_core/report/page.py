"""All tables and figures on one HTML page, which opens anywhere and asks nothing of a network."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ttc_core.errors import UserError
from ttc_core.report.configuration import configurations
from ttc_core.report.drawing import Drawing
from ttc_core.report.results import Result, settings
from ttc_core.report.table import Table
from ttc_core.rows import as_key, value_text

# Said of a run in a place of its own, or of each of its rows.
_ELSEWHERE = ("method", "settings", "corruption", "batch_size", "after")


@dataclass(frozen=True)
class Section:
    """A part of the page under a heading of its own."""

    id: str
    title: str
    tables: Sequence[Table] = ()
    figures: Sequence[Drawing] = ()


@dataclass
class _Run:
    """A method, its settings and where it ran, whatever the batch size and corruption."""

    title: str
    fields: dict[str, str]
    batch_sizes: dict[Any, None] = field(default_factory=dict)
    corruptions: dict[str, None] = field(default_factory=dict)


def render(
    sections: Sequence[Section],
    results: Sequence[Result],
    files: Sequence[str],
    problems: Sequence[str],
) -> str:
    """Make the page. Whatever text is in the rows is shown as text.

    Raises:
        UserError: Jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise UserError("The page needs Jinja2: pip install 'ttc-service[report]'.") from error
    environment = Environment(
        loader=PackageLoader("ttc_core.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(
        sections=sections,
        runs=_runs(results),
        count=len(results),
        files=files,
        problems=problems,
    )


def _runs(results: Sequence[Result]) -> list[_Run]:
    found: dict[str, _Run] = {}
    named = configurations(result.row for result in results)
    for result, configuration, told in zip(results, named, settings(results), strict=True):
        fields = {name: value_text(told[name]) for name in told if name not in _ELSEWHERE}
        for name in ("settings", "versions"):
            pairs = [f"{key}={value}" for key, value in (result[name] or {}).items()]
            fields[name] = ", ".join(pairs) or "none"
        where = f" on {result['data']}" if result["data"] else ""
        title = f"{configuration.title}{where}"
        run = found.setdefault(as_key([title, fields]), _Run(title, fields))
        if result["batch_size"] is not None:
            run.batch_sizes[result["batch_size"]] = None
        if result["corruption"]:
            run.corruptions[result["corruption"]] = None
    return list(found.values())
