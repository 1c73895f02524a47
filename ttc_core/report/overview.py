"""One matrix before all tables: every method on every stream of the rows, wherever it ran."""

from collections.abc import Sequence

from ttc_core.report.streams import ACCURACY, Matrix, label, ordered, stream_cell
from ttc_core.report.table import NONE, Cell, Table, mark_best


def overview(found: Sequence[Matrix]) -> Table | None:
    """Methods × streams: the mean accuracy, and the paired difference to SOURCE.

    Args:
        found: all matrices, those of a single stream too; where they are several, a column says
            on which data and network it is.

    Returns:
        None where there is nothing to show.
    """
    lines = ordered(line for matrix in found for line in matrix.lines)
    columns = [
        (f"{matrix.place}: {title}" if len(found) > 1 else title, cells)
        for matrix in found
        for title, cells in matrix.cells.items()
    ]
    if not columns:
        return None
    table = []
    for line in lines:
        name = label(line, lines)
        cells = [
            stream_cell(line, rows, ACCURACY) if line in rows else Cell(None, NONE)
            for _, rows in columns
        ]
        table.append([Cell(name, name), *cells])
    heads = [head for head, _ in columns]
    where = f" on {found[0].place}" if len(found) == 1 else ""
    return Table(
        "overview",
        f"Methods × streams: {ACCURACY.title}{where}",
        ["Method", *heads],
        ["method", *heads],
        mark_best(table),
        (
            "Each number is the mean over the corruptions and seeds of its column. In brackets the "
            "difference to SOURCE in points, with the standard error of the mean over the same "
            "images. N: images in a batch.",
        ),
    )
