"""Methods × corruptions: the paper's Tables 2, 3, 4 and 6, and its Table 5 of augmentations."""

from collections.abc import Sequence
from dataclasses import replace

from ttc_core.corruptions import CORRUPTIONS
from ttc_core.report import paper
from ttc_core.report.groups import Group, Line
from ttc_core.report.table import Cell, Table, mark_best, percent
from ttc_core.rows import asked_images, averaged

SHORT_NAMES = dict(
    zip(
        CORRUPTIONS,
        (
            *("gaus", "shot", "impul", "defcs", "gls", "mtn", "zm"),
            *("snw", "frst", "fg", "brt", "cnt", "els", "px", "jpg"),
        ),
        strict=True,
    )
)
AUGMENTATIONS = {
    "resized_crop": "RRCrop",
    "rotation": "RandRot",
    "gaussian_noise": "GausNoise",
    "vertical_flip": "VerFlip",
    "horizontal_flip": "HorFlip",
}
DEFAULT_AUGMENTATION = "horizontal_flip"


def accuracy_table(group: Group, name: str) -> Table:
    """Methods × corruptions × average, in the form of the paper's Tables 2, 3, 4 and 6."""
    lines = []
    for line in group.lines:
        one = line.configuration
        lines.append([Cell(one.label, one.title), *_accuracies(line, group.columns)])
        if line.is_default() and (found := line.in_paper(paper.COMPARISONS, one.method)):
            lines.append(_quoted(found, f"{one.title}, paper", group.columns))
    return _by_corruption(name, f"Accuracy in % on {group.caption}", "Method", group, lines)


def augmentation_table(group: Group) -> Table | None:
    """Table 5: TTC with other second views; None unless there are two."""
    found: dict[str, Line] = {}
    for line in group.lines:
        one = line.configuration
        if one.is_known and one.method == "ttc" and one.told.keys() <= {"augmentation"}:
            found[one.told.get("augmentation", DEFAULT_AUGMENTATION)] = line
    if len(found) < 2:
        return None
    lines = []
    for name, title in AUGMENTATIONS.items():
        if name in found:
            lines.append([Cell(name, title), *_accuracies(found[name], group.columns)])
            if quoted := found[name].in_paper((5,), name):
                lines.append(_quoted(quoted, f"{title}, paper", group.columns))
    caption = f"Table 5: TTC with other augmentations, accuracy in % on {group.caption}"
    return _by_corruption("table5", caption, "Augmentation", group, lines)


def _accuracies(line: Line, columns: Sequence[str]) -> list[Cell]:
    cells = [_accuracy(line, name) for name in columns]
    average = line.average(columns)
    return [*cells, percent(average, None if average is None else line.average_interval(columns))]


def _accuracy(line: Line, name: str) -> Cell:
    cell, result = percent(line.accuracy(name), line.interval(name)), line.results.get(name)
    if result is None or not result.is_partial:
        return cell
    images, asked = result["images"], asked_images(result.row)
    of = f"{images} of {asked} images" if images < asked else "server restarted"
    return replace(
        cell,
        text=f"{cell.text} ({of})",
        comparable=False,
        beside={"images": images, "asked": asked},
    )


def _quoted(found: paper.PaperLine, label: str, columns: Sequence[str]) -> list[Cell]:
    cells = [percent(found.accuracies.get(name), quoted=True) for name in columns]
    whole = set(CORRUPTIONS) <= set(columns)
    return [
        Cell(label, label, quoted=True),
        *cells,
        percent(found.average if whole else None, quoted=True),
    ]


def _by_corruption(
    name: str, caption: str, what: str, group: Group, lines: list[list[Cell]]
) -> Table:
    return Table(name, caption, *headers(what, group.columns), mark_best(lines))


def headers(what: str, columns: Sequence[str]) -> tuple[list[str], list[str]]:
    """The heads of a column for each corruption and one of averages, short and in full.

    The average's says over how many, unless over the fifteen.
    """
    names = averaged(columns)
    average = "Avg" if set(names) == set(CORRUPTIONS) else f"Avg of {len(names)}"
    short = [what, *(SHORT_NAMES.get(column, column) for column in columns), average]
    return short, [what.lower(), *columns, "average"]
