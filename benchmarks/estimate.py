"""Where the numbers of `ttc_core/guard/estimate.py` are from, and how wrong it is: `make estimate`.

    python -m benchmarks.estimate collect [--only NAME]... [--streams 48] [--minutes 40]
    python -m benchmarks.estimate fit

`collect` (`benchmarks.answers`) has the source, the restyled source and methods answer the same
streams; rows that are there are not run again. `fit` fits the nine numbers to what was right, one
network left out by turns; it says how wrong the estimate is on that, and what alarms it would give.
Digits, and a network of a thousand classes, have no part in the numbers.
"""

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, Self

import click
import numpy as np
from sklearn.linear_model import LogisticRegression

from benchmarks.answers import ROWS, USUAL, codes, collect
from ttc_core.guard.estimate import CALIBRATED, CERTAIN, UNCALIBRATED, Judge, Shares, Table
from ttc_core.guard.evidence import Evidence
from ttc_core.guard.guarded import GuardSettings
from ttc_core.methods.parts import Numbers
from ttc_core.report.streams import stream_title
from ttc_core.rows import Arrays, Row, Rows

ALL, MADE_UP = "all but collapses made up", "collapses made up"
NAMES = (
    *("1", "restyled", "usual", "entropy", "is served × served by restyled"),
    *("served × source by restyled", "restyled × entropy", "source × served by restyled"),
    *("is served × entropy", "served ±", "source ±", "difference ±"),
)
# How much a stream's images count in the fit, how many there are of each, and what weighs on the
# squares of the numbers.
WEIGHTS, EACH, PENALTY = {USUAL: 2.5, MADE_UP: 0.5}, 100, 2e-4
# What is no harm yet, how much is, and lives: so many images, so many in a row as they came.
SLACKS, HARM = (0.1, 0.15, 0.2, 0.25, 0.3), (0, 0.05, 0.1, 0.2, 0.3, 0.5, 1)
LIFE, PIECE = 2000, 20


@click.group(commands=[collect])
def main() -> None:
    """How many answers are right, without labels: the numbers behind it, and how wrong it is."""


class Recording(Judge):
    """Keeps the features that it judges by.

    Attributes:
        features: (2, 9) of each image, of the served answer and of the source's.
    """

    def __init__(self, classes: int, temperature: float | None) -> None:
        super().__init__(classes, temperature=temperature)
        self.features: list[Numbers] = []
        self._asked: list[Numbers] = []

    def _after(self, *answers: Any, **given: Any) -> Any:
        self._asked.clear()
        found = super()._after(*answers, **given)
        # Of an answer that both share they are asked for once.
        self.features.append(np.stack((self._asked[0], self._asked[-1])))
        return found

    def _chance(self, features: Numbers) -> float:
        self._asked.append(features)
        return super()._chance(features)


@dataclass(frozen=True)
class Seen:
    """A stream as it is judged: n images with a label.

    Attributes:
        features: (n, 2, 9), of the served answer and of the source's.
        right: (n, 2) whether they were, 1 or 0.
        differ: (n,) whether they are two classes.
    """

    network: str
    variant: str
    stream: str
    features: Numbers
    right: Numbers
    differ: Numbers

    @classmethod
    def of(
        cls, row: Row, beside: Arrays, temperature: float | None, made_up: Numbers | None = None
    ) -> Self:
        source, second, served = (
            np.exp(np.float64(beside[name])) for name in ("source", "restyled", "served")
        )
        served, labels = served if made_up is None else made_up, beside["labels"]
        judge = Recording(served.shape[1], temperature)
        judge.after(source, second, served)
        classes = np.stack((served.argmax(1), source.argmax(1)), axis=1)
        right, differ = np.float64(classes == labels[:, None]), classes[:, 0] != classes[:, 1]
        found = (each[labels >= 0] for each in (np.stack(judge.features), right, differ))
        variant = row["variant"] if made_up is None else MADE_UP
        return cls(row["network"], variant, stream_title(row), *found)

    @property
    def is_fitted(self) -> bool:
        """Whether numbers are fitted to its network."""
        return not self.network.startswith(("digits", "lite0"))

    @property
    def is_counted(self) -> bool:
        """Whether it is one of those that the estimate is judged by."""
        return self.is_fitted and self.variant != MADE_UP

    @property
    def groups(self) -> list[str]:
        """The lines of the table of errors that it has a part in."""
        if not self.is_counted:
            return [MADE_UP if self.variant == MADE_UP else self.network]
        of_default = [f"{USUAL}: {self.stream}"] if self.variant == USUAL else []
        return [ALL, self.network, self.variant, *of_default]

    @cached_property
    def truth(self) -> Numbers:
        """(3,) the accuracy of what was served, of the source, the difference."""
        return _means(self.right)

    def chances(self, table: Table) -> Numbers:
        """(n, 2) how likely each is right."""
        found: Numbers = 1 / (1 + np.exp(-self.features @ table.weights))
        return found

    def residuals(self, table: Table) -> Numbers:
        """(3,) how wrong that is, in the units of a table's intervals."""
        found = _means(self.chances(table))
        shares = np.clip((found[:2], self.truth[:2]), CERTAIN, 1 - CERTAIN)
        odds = np.log(shares / (1 - shares))
        last = (found - self.truth)[2] / (self.differ.mean() + 2 * CERTAIN)
        return np.abs((*(odds[0] - odds[1]), last))

    def held(self, table: Table) -> list[bool]:
        """(3,) whether the truth lies within the intervals that would be told."""
        judge, means = Judge(2), self.chances(table).mean(0).tolist()
        judge._table = table
        told = judge._estimates(Shares(*means, float(self.differ.mean())), len(self.right))
        assert told is not None
        each = zip((told.adapted, told.source, told.difference), self.truth, strict=True)
        return [one.low <= truth <= one.high for one, truth in each]


def _means(values: Numbers) -> Numbers:
    served, source = values.mean(0)
    return np.array((served, source, served - source))


def streams_in(rows: Rows, *, known: bool) -> list[Seen]:
    """All that were collected, and of each two collapses made up: one class, or any, surely.

    Args:
        known: the networks' temperatures are.
    """
    random, found = np.random.default_rng(0), []
    for row in rows:
        beside = rows.arrays(row)
        if beside is None or not codes().items() <= row.items():
            continue
        temperature = float(beside["temperature"]) if known else None
        found.append(Seen.of(row, beside, temperature))
        if row["variant"] == USUAL and found[-1].is_fitted:
            images, classes = shape = beside["served"].shape
            for chosen in (random.integers(classes), random.integers(classes, size=images)):
                sure, rest = random.choice((0.5, 0.8, 0.95, 0.999)), random.random(shape)
                served = (1 - sure) * rest / rest.sum(1, keepdims=True)
                served[np.arange(images), chosen] += sure
                found.append(Seen.of(row, beside, temperature, served))
    return found


def fitted(seen: Iterable[Seen], without: Set[str]) -> Table:
    """The numbers that make what was right likeliest, each network counting alike."""
    used = [each for each in seen if each.is_fitted and each.network not in without]
    weights = np.array([WEIGHTS.get(each.variant, 1.0) for each in used])
    names, of = np.unique([each.network for each in used], return_inverse=True)
    weights = np.repeat(weights / np.bincount(of, weights)[of] / len(names) / 2 / EACH, 2 * EACH)
    places = [np.linspace(0, len(each.right) - 1, EACH).astype(int) for each in used]
    features, right = (
        np.concatenate([getattr(each, name)[at] for each, at in zip(used, places, strict=True)])
        for name in ("features", "right")
    )
    model = LogisticRegression(C=1 / PENALTY, solver="newton-cholesky")
    # The first feature is 1.
    model.fit(features.reshape(-1, features.shape[2])[:, 1:], right.ravel(), weights)
    return Table(np.array((*model.intercept_, *model.coef_[0])), 0.0, 0.0, 0.0)


class Judging:
    """All streams, each judged by numbers that were fitted to other networks.

    Attributes:
        code: the numbers in the code.
        whole: fitted to all networks.
        chances: (n, 2) of each stream's images, by numbers of other networks and by the code's.
        columns: (streams, 3) each: how wrong the estimate is, too high on average, and what holds
            the truth.
    """

    def __init__(self, seen: Sequence[Seen], code: Table) -> None:
        self.seen, self.code = seen, code
        names = sorted({each.network for each in seen if each.is_fitted})
        sets = [frozenset(some) for n in range(3) for some in combinations(names, n)]
        self._fits = {without: fitted(seen, without) for without in sets}
        self.whole = self._table()
        tables = {name: self._table(name) for name in names}
        pairs = [(each, tables.get(each.network, self.whole)) for each in seen]
        self.chances = {
            "left out": [each.chances(table) for each, table in pairs],
            "code": [each.chances(code) for each in seen],
        }
        wrong = {name: self._wrong(each) for name, each in self.chances.items()}
        held = np.array([each.held(table) for each, table in pairs])
        self.columns = {
            "error": np.abs(wrong["left out"]),
            "bias": wrong["left out"],
            "% held": held,
            "the code's": np.abs(wrong["code"]),
        }

    def _table(self, *without: str) -> Table:
        """What is fitted, to all networks but some: intervals to how wrong what is fitted to the
        others is at each."""
        residuals = [
            each.residuals(self._fits[frozenset((*without, each.network))])
            for each in self.seen
            if each.is_counted and each.network not in without
        ]
        served, source, differ = np.quantile(residuals, 0.9, axis=0).tolist()
        return Table(self._fits[frozenset(without)].weights, served, source, differ)

    def _wrong(self, chances: Iterable[Numbers]) -> Numbers:
        pairs = zip(chances, self.seen, strict=True)
        return np.array([_means(each) - seen.truth for each, seen in pairs])


def told_numbers(*judgings: Judging) -> str:
    """The numbers in the code, and those that are fitted to all networks."""
    tables = [table for each in judgings for table in (each.code, each.whole)]
    columns = [(*table.weights, table.served, table.source, table.differ) for table in tables]
    rows = [[n, *(f"{x:.3f}" for x in row)] for n, *row in zip(NAMES, *columns, strict=True)]
    return _markdown(("", "code, T known", "fitted", "code, not known", "fitted"), rows)


def told_errors(*judgings: Judging) -> str:
    """Mean absolute errors in points, and intervals that hold the truth in %."""
    groups: dict[str, list[int]] = {}
    for number, each in enumerate(judgings[0].seen):
        for name in each.groups:
            groups.setdefault(name, []).append(number)
    values = [values for each in judgings for values in each.columns.values()]
    rows = []
    for name, some in sorted(groups.items(), key=lambda pair: (pair[0] != ALL, pair[0])):
        means = [100 * each[some].mean(0) for each in values]
        told = [
            " / ".join(f"{x:.{each.dtype != bool:d}f}" for x in mean)
            for each, mean in zip(values, means, strict=True)
        ]
        rows.append([name, str(len(some)), *told])
    header = [f"{k}{known}" for known in ("", ", T not known") for k in judgings[0].columns]
    return _markdown(("", "passes", *header), rows)


def told_alarms(*judgings: Judging, by: str, fitted: bool = True) -> str:
    """Streams in which harm would be seen, of how many: with the temperature, and without; of the
    networks that numbers are fitted to, or of the others."""
    random, rows = np.random.default_rng(0), []
    for slack in SLACKS:
        cells = []
        for judging in judgings:
            real = [
                number
                for number, each in enumerate(judging.seen)
                if each.variant != MADE_UP and each.is_fitted == fitted
            ]
            gains = np.array([judging.seen[i].truth[2] for i in real])
            chances = [judging.chances[by][i] for i in real]
            default = np.array([judging.seen[i].variant == USUAL for i in real], bool)
            rung = np.array([rings(each, slack) for each in chances], bool)
            lived = np.array([rings(_life(each, random), slack) for each in chances], bool)
            groups = [(rang, gains >= 0) for rang in (rung, lived)]
            groups += [(rang, (gains >= 0) & default) for rang in (rung, lived)]
            groups += [(rung, (gains < -a) & (gains >= -b)) for a, b in pairwise(HARM)]
            cells.append([f"{rang[some].sum()}/{some.sum()}" for rang, some in groups])
        rows.append([f"{slack:.2f}", *(", ".join(both) for both in zip(*cells, strict=True))])
    false = ("false", f"in {LIFE:,} images", "the default's", f"in {LIFE:,} images")
    sizes = [f"harm {100 * low:.0f} to {100 * high:.0f}" for low, high in pairwise(HARM)]
    return _markdown(("slack", *false, *sizes), rows)


def rings(chances: Numbers, slack: float) -> bool:
    """Whether the evidence of harm comes to what a stream's first alarm takes."""
    evidence, enough = Evidence(), 2 / GuardSettings().false_alarms
    for served, source in chances.tolist():
        evidence = evidence.after(source - served - slack)
        if evidence.wealth >= enough:
            return True
    return False


def _life(chances: Numbers, random: np.random.Generator) -> Numbers:
    starts = random.integers(max(1, len(chances) - PIECE), size=LIFE // PIECE)
    return chances[(starts[:, None] + np.arange(min(PIECE, len(chances)))).ravel()]


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = (header, ["---"] * len(header), *rows)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


@main.command()
@ROWS
@click.option("--out", type=Path, default="results/estimate.md", show_default=True)
def fit(path: Path, out: Path) -> None:
    """Fit the numbers to the rows that are there, and say how wrong they are elsewhere."""
    rows = Rows(path)
    seen = [streams_in(rows, known=known) for known in (True, False)]
    if len({each.network for each in seen[0] if each.is_fitted}) < 3:
        raise click.ClickException("Rows of three networks or more are needed; collect them.")
    judgings = [Judging(*each) for each in zip(seen, (CALIBRATED, UNCALIBRATED), strict=True)]
    parts = {
        "The numbers": told_numbers(*judgings),
        "How wrong the estimate is on a network left out": told_errors(*judgings),
        "Harm seen on a network left out": told_alarms(*judgings, by="left out"),
        "Harm seen by the numbers in the code": told_alarms(*judgings, by="code"),
        "The same on other data": told_alarms(*judgings, by="code", fitted=False),
    }
    text = "\n".join(f"{title}:\n\n{table}" for title, table in parts.items())
    out.write_text(text)
    click.echo(text)


if __name__ == "__main__":
    main()
