"""Two methods on the same images: McNemar's test, corruption by corruption."""

from ttc_core.report.groups import Group, Line
from ttc_core.report.statistics import Comparison, Correct, holm, mcnemar, paired_average
from ttc_core.report.table import NONE, Cell, Table
from ttc_core.report.tables import headers
from ttc_core.rows import averaged

SIGNIFICANT = 0.05


def mcnemar_table(group: Group, reference: str, name: str) -> Table | None:
    """Each method against a reference on the same images; None where there is nothing to compare.

    Args:
        reference: a method's name or whole label.
    """
    base = group.find(reference)
    others = [line for line in group.lines if line is not base]
    if base is None or not others:
        return None
    title = base.configuration.title
    columns = averaged(group.columns)
    tests: list[dict[str, Comparison]] = []
    averages: list[tuple[float, float] | None] = []
    for line in others:
        pairs = {column: _pair(line, base, column) for column in columns}
        known = {column: pair for column, pair in pairs.items() if pair is not None}
        tests.append({column: mcnemar(*pair) for column, pair in known.items()})
        digests = {found.labels_digest for c in known if (found := base.image_results(c))}
        whole = len(known) == len(columns) and len(digests) == 1
        firsts, seconds = [a for a, _ in known.values()], [b for _, b in known.values()]
        averages.append(paired_average(firsts, seconds) if whole and len(firsts[0]) > 1 else None)
    if not any(tests):
        return None
    flat = [test.p for each in tests for test in each.values()]
    corrected = iter(holm(flat))
    average_p = iter(holm([found[1] for found in averages if found is not None]))
    lines = []
    for line, each, average in zip(others, tests, averages, strict=True):
        cells = [
            _comparison(each[column], next(corrected)) if column in each else Cell(None, NONE)
            for column in columns
        ]
        last = Cell(None, NONE)
        if average is not None:
            p = next(average_p)
            text = f"{100 * average[0]:+z.1f}, p {_p(p)}"
            points = {"difference": 100 * average[0]}
            last = Cell(p, text, best=p < SIGNIFICANT, beside=points)
        lines.append([Cell(line.configuration.label, line.configuration.title), *cells, last])
    return Table(
        name,
        f"Against {title}, image by image: {group.caption}",
        *headers("Method", columns),
        lines,
        (
            f"A : B: images that the method alone, and {title} alone, answers right; p "
            "of McNemar's exact test, after Holm's correction over the table; bold below "
            f"{SIGNIFICANT}. Last column: difference of the averages in points, and p of a paired "
            "normal test on the images' own means over the corruptions, corrected among its own.",
        ),
    )


def _pair(line: Line, base: Line, corruption: str) -> tuple[Correct, Correct] | None:
    """Right or wrong, image by image; None unless both answered the same images in one order."""
    first, second = line.image_results(corruption), base.image_results(corruption)
    if first is None or second is None or first.labels_digest != second.labels_digest:
        return None
    return first.right, second.right


def _comparison(test: Comparison, p: float) -> Cell:
    text = f"{test.only_first} : {test.only_second}, p {_p(p)}"
    counts = {"only_first": test.only_first, "only_second": test.only_second}
    return Cell(p, text, best=p < SIGNIFICANT, beside=counts)


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
