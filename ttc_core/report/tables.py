"""Methods × corruptions: the paper's Tables 2, 3, 4 and 6, and its Table 5 of augmentations."""

from collections.abc import Sequence
from dataclasses import replace

from ttc_core.corruptions import CORRUPTIONS
from ttc_core.report import paper
from ttc_core.report.groups import Group, Line, average_title
from ttc_core.report.results import differing, shown
from ttc_core.report.table import Cell, Table, mark_best, percent
from ttc_core.rows import asked_images

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
        lines.append([Cell(line.label, shown(line.label)), *_accuracies(line, group.columns)])
        if line.is_default() and (found := group.paper_line(paper.COMPARISONS, line.label)):
            lines.append(_quoted(found, f"{shown(line.label)}, paper", group.columns))
    return _by_corruption(name, f"Accuracy in % on {group.caption}", "Method", group, lines)


def augmentation_table(group: Group) -> Table | None:
    """Table 5: TTC with other second views; None unless there are two."""
    found: dict[str, Line] = {}
    for line in group.lines:
        changes = [differing(result) for result in line.results.values()]
        first = changes[0]
        if (
            not line.label.startswith("ttc")
            or first is None
            or not first.keys() <= {"augmentation"}
        ):
            continue
        settings = next(iter(line.results.values())).settings
        found[settings.get("augmentation", DEFAULT_AUGMENTATION)] = line
    if len(found) < 2:
        return None
    lines = []
    for name, title in AUGMENTATIONS.items():
        if name in found:
            lines.append([Cell(name, title), *_accuracies(found[name], group.columns)])
            if quoted := group.paper_line((5,), name):
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
    return Table(
        name,
        caption,
        [
            what,
            *(SHORT_NAMES.get(column, column) for column in group.columns),
            average_title(group.columns),
        ],
        [what.lower(), *group.columns, "average"],
        mark_best(lines),
    )
