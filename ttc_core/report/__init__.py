"""From result rows to tables, figures and one page: `write_report`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ttc_core.errors import UserError
from ttc_core.files import written_whole
from ttc_core.report.comparison import mcnemar_table
from ttc_core.report.figures import draw
from ttc_core.report.groups import groups
from ttc_core.report.overview import overview
from ttc_core.report.page import Section, render
from ttc_core.report.results import ArraysError, Result, read_results, repeated
from ttc_core.report.streams import (
    calibration_tables,
    change_table,
    matrices,
    stream_figures,
    window_table,
)
from ttc_core.report.table import Table
from ttc_core.report.tables import accuracy_table, augmentation_table
from ttc_core.report.tables_across_data import batch_size_table, component_table
from ttc_core.report.utility import utility_tables

REFERENCE = "tent"


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        accuracy: the Markdown of the accuracy tables.
        problems: sentences about what could not be shown.
    """

    accuracy: str
    problems: list[str]


def write_report(paths: Sequence[Path], out: Path, *, compare: str | None = None) -> Report:
    """Write tables (.md, .csv), figures (.png, .svg) and index.html into a folder.

    Args:
        paths: rows files of `evaluate` and `replay`.
        compare: the method, or the label of a line, that the others are tested against; None:
            TENT where it is there, else the first.

    Raises:
        UserError: the rows cannot be read, the folder cannot be written, or an extra is missing.
    """
    results = read_results(paths)
    found = groups(results)
    problems = _damaged(results) + repeated(results)
    accuracy = [accuracy_table(group, f"accuracy-{n}") for n, group in enumerate(found, start=1)]
    augmentations = [table for group in found if (table := augmentation_table(group))]
    sizes, components = batch_size_table(found), component_table(found)
    tests = []
    for number, group in enumerate(found, start=1):
        first = group.lines[0].configuration.label
        reference = compare or (REFERENCE if group.find(REFERENCE) else first)
        if table := mcnemar_table(group, reference, f"mcnemar-{number}"):
            tests.append(table)
    if compare is not None and not any(group.find(compare) for group in found):
        raise UserError(f"There are no rows of {compare!r} to compare with.")
    first_of_all = overview(matrices(results, fewest=1))
    over_streams = list(enumerate(matrices(results), start=1))
    drawings = draw(results, found)
    for number, matrix in over_streams:
        drawings += stream_figures(matrix, "stream" if number == 1 else f"stream-{number}")
    sections = [
        Section("overview", "Methods × streams", [first_of_all] if first_of_all else []),
        Section(
            "streams",
            "Streams, window by window and after changes",
            [
                table
                for number, matrix in over_streams
                for table in (
                    window_table(matrix, f"windows-{number}"),
                    change_table(matrix, f"changes-{number}"),
                )
                if table is not None
            ],
        ),
        Section("accuracy", "Accuracy by corruption (Tables 2, 3, 4, 6)", accuracy),
        Section(
            "calibration",
            "Calibration of what was answered",
            calibration_tables(results),
        ),
        Section("utility", "Utility under time", utility_tables(results)),
        Section("table1", "Table 1: small batches", [sizes] if sizes else []),
        Section("table5", "Table 5: augmentations", augmentations),
        Section("table7", "Table 7: components", [components] if components else []),
        Section("mcnemar", "Methods compared image by image", tests),
        *(Section(one.name, one.title, figures=[one]) for one in drawings),
    ]
    sections = [section for section in sections if section.tables or section.figures]
    page = render(sections, results, [str(path) for path in paths], problems)
    files: dict[str, str | bytes] = {}
    for section in sections:
        if section.tables:
            files[f"{section.id}.md"] = _markdown(section.tables)
            if intervals := [each for table in section.tables if (each := table.intervals())]:
                files[f"{section.id}-intervals.md"] = _markdown(intervals)
        for number, table in enumerate(section.tables, start=1):
            name = table.name if "-" in table.name or number == 1 else f"{table.name}-{number}"
            files[f"{name}.csv"] = table.csv()
    for one in drawings:
        files |= {f"{one.name}.png": one.png, f"{one.name}.svg": one.svg}
    for name, content in (files | {"index.html": page}).items():
        try:
            if any((out / name).samefile(path) for path in paths if (out / name).exists()):
                raise UserError(f"{out / name} holds the rows; choose another folder.")
            with written_whole(out / name) as file:
                file.write(content if isinstance(content, bytes) else content.encode())
        except OSError as error:
            raise UserError(
                f"The report cannot be written to {out}: {error.strerror or error}."
            ) from error
    return Report(_markdown(accuracy), problems)


def _markdown(tables: Sequence[Table]) -> str:
    return "\n".join(table.markdown() for table in tables)


def _damaged(results: Sequence[Result]) -> list[str]:
    """Sentences about arrays that should lie beside rows and cannot be read."""
    problems = []
    for result in results:
        try:
            result.arrays()
        except ArraysError as error:
            problems.append(str(error))
    return problems
