"""Where the numbers of `ttc_core/guard/estimate.py` are from, and how wrong it is: `make estimate`.

    python -m benchmarks.estimate collect [--only NAME]... [--streams 48] [--minutes 40]
    python -m benchmarks.estimate fit

`collect` lets the source, the restyled source and a method answer the same images: networks ×
streams × corruptions, mixed, the default and one other method on each, by the same walk as
`ttc evaluate`. Rows that are there are not run again. `fit` fits the nine numbers to what was
right, leaving one network out by turns, says how wrong the estimate is on it, and what alarms it
would give; digits, and a network of a thousand classes, have no part in the numbers.
"""

import ast
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import combinations, pairwise, product
from pathlib import Path
from typing import Any, Self

import click
import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from benchmarks.harm import MOVING
from benchmarks.places import PLACES, Place
from benchmarks.streams import BATCH_SIZE, DEFAULT, SCENES, Scene, evaluation_of
from benchmarks.study import SEVERITY, Collecting, Study, TimeIsOver, methods_digest, scenes_of
from service.cli.evaluate import row_fields
from service.cli.options import load_model
from ttc_core.calibration_record import fitted_temperature, measured
from ttc_core.corruptions import CORRUPTIONS
from ttc_core.datasets import DataSet, Geometry, open_data
from ttc_core.errors import UserError
from ttc_core.evaluate import Run, as_batch
from ttc_core.guard import restyled
from ttc_core.guard.estimate import CALIBRATED, CERTAIN, UNCALIBRATED, Judge, Shares, Table
from ttc_core.guard.evidence import Evidence
from ttc_core.guard.guarded import GuardSettings
from ttc_core.guard.restyled import Restyled
from ttc_core.guard.wrapper import Wrapper
from ttc_core.methods import Method, Prediction, UnsuitableNetworkError
from ttc_core.methods.parts import Numbers
from ttc_core.methods.parts.shadow import answers_to
from ttc_core.model import SourceModel
from ttc_core.presets import Variant
from ttc_core.rows import Arrays, Row, Rows

VARIANTS = {
    "the default": Variant(DEFAULT, {}, 10),
    "TENT, N = 100": Variant("tent", {}, 100),
    "TTC, rate × 10": Variant("ttc", {**MOVING, "lr": 0.01}, 10),
    "TENT, N = 1": Variant("tent", {}, 1),
    "TENT, N = 10": Variant("tent", {}, 10),
    "TTC": Variant("ttc", MOVING, 10),
}
DEFAULT_LABEL, *OTHERS = VARIANTS
MADE_UP = "collapses made up"
# Suspect frames are never compared; what takes 2,000 images, or goes on, is left to others.
STREAMS = [
    scene
    for scene in SCENES
    if not scene.mix.startswith(("noise", "frozen"))
    and not scene.protocol.startswith(("recurring", "changing:500"))
]
# Images compared at a time; clean ones, the last of all, that a temperature is fitted to.
TOGETHER, LAST = 10, 1000
NAMES = (
    *("1", "restyled", "usual", "entropy", "is served × served by restyled"),
    *("served × source by restyled", "restyled × entropy", "source × served by restyled"),
    *("is served × entropy", "served ±", "source ±", "difference ±"),
)
# How much a stream's images count in the fit, how many there are of each, and what weighs on the
# squares of the numbers.
WEIGHTS, EACH, PENALTY = {DEFAULT_LABEL: 2.5, MADE_UP: 0.5}, 100, 2e-4
# What is no harm yet, how much is, and lives: so many images, so many in a row as they came.
SLACKS, HARM = (0.1, 0.15, 0.2, 0.25, 0.3), (0, 0.05, 0.1, 0.2, 0.3, 0.5, 1)
LIFE, PIECE = 2000, 20


class Compared(Wrapper):
    """A method beside which the source and the restyled source answer every image."""

    def __init__(self, inner: Method) -> None:
        super().__init__(inner)
        self._restyled = Restyled(self.model)
        self._answers: list[tuple[Tensor, ...]] = []

    def predict(self, images: Tensor, **asked: Any) -> Prediction:
        said = self.inner.predict(images, **asked)
        inputs = self.model.normalize(self.model.to_unit(images)).split(TOGETHER)
        for some, served in zip(inputs, said.probabilities.split(TOGETHER), strict=True):
            source = answers_to(self.model, some, range(len(some)))
            logits, self._restyled.style = self._restyled.answers(some)
            self._answers.append((served.log(), source.log_softmax(1), logits.log_softmax(1)))
        return said

    def taken(self) -> Arrays:
        """(N, K) log probabilities that each of the three gave since the reset."""
        each = (torch.cat(answers).cpu().numpy() for answers in zip(*self._answers, strict=True))
        return dict(zip(("served", "source", "restyled"), each, strict=True))

    def reset(self) -> None:
        super().reset()
        self._restyled.reset()
        self._answers.clear()


class AnswerRows(Rows):
    """Rows beside which lie the answers of all three, and the temperature of their network."""

    at: tuple[Compared, float]

    def append(self, row: Mapping[str, Any], details: Arrays | None = None) -> Row:
        method, temperature = self.at
        beside = {"temperature": np.array(temperature), **method.taken()}
        return super().append(row, {**(details or {}), **beside})


def networks(only: Sequence[str] = ()) -> dict[str, list[Place]]:
    """The places of each, all corruptions at each; not the clips, whose labels are a network's."""
    found: dict[str, list[Place]] = {}
    for place in (place for places in PLACES.values() for place in places):
        others = found.setdefault(place.model, [])
        if not place.name.startswith("clip") and place.data not in {each.data for each in others}:
            others.append(replace(place, corruptions=CORRUPTIONS if place.corruptions else ()))
    named = {places[0].name.removesuffix("-clean"): places for places in found.values()}
    return {k: places for k, places in named.items() if not only or k.startswith(tuple(only))}


def streams_at(places: Sequence[Place], images: int) -> list[tuple[Place, Scene, list[str]]]:
    """All streams, each with its corruptions, in an order of the network's own."""
    study = Study(lambda classes: {}, [replace(s, images=images) for s in STREAMS], images, None)
    found = []
    for place in places:
        singles = [[name] for name in (*place.corruptions, "clean")]
        doubles = [[*pair] for pair in pairwise((*place.corruptions, "clean"))]
        for scene in scenes_of(place, study):
            which = doubles if scene.protocol.startswith("changing") else singles
            found += [(place, scene, names) for names in which]
    order = np.random.default_rng([*places[0].name.encode()]).permutation(len(found))
    return [found[number] for number in order]


@cache
def opened(spec: str, where: str, usual: str) -> tuple[SourceModel, DataSet, float]:
    """A network without its record, images, and the temperature by the record; for want of one by
    clean images of the usual data, of which a stream may hold some."""
    model = load_model(spec, "auto", None, None)
    asked = Geometry(model.size, model.crop), model.class_names
    record, model.calibration = model.calibration, None
    if record is not None:
        return model, open_data(where, *asked), record.temperature
    clean = open_data(usual, *asked).open("clean", SEVERITY)
    last = replace(clean, labels=clean.labels[-LAST:], positions=clean.positions[-LAST:])
    batches = ((as_batch(x), torch.from_numpy(y)) for x, y in last.batches(BATCH_SIZE))
    return model, open_data(where, *asked), fitted_temperature(*measured(model, batches))


@cache
def codes() -> dict[str, str]:
    """Of what answers: rows of a former version are others."""
    code = ast.dump(ast.parse(Path(restyled.__file__).read_text()))
    digest = hashlib.sha256(code.encode()).hexdigest()[:16]
    return {"methods_code": methods_digest(), "restyled_code": digest}


@click.group()
def main() -> None:
    """How many answers are right, without labels: the numbers behind it, and how wrong it is."""


ROWS = click.option(
    "--rows", "path", type=Path, default="results/estimate.jsonl", show_default=True
)


@main.command()
@click.option("--only", multiple=True, help="of the networks, those whose name begins so")
@click.option("--streams", default=48, show_default=True, help="of each network")
@click.option("--images", default=300, show_default=True, help="of a stream, at most")
@click.option("--minutes", default=math.inf, help="begin no pass after so many")
@ROWS
def collect(only: Sequence[str], streams: int, images: int, minutes: float, path: Path) -> None:
    """Fill in the rows that are missing: the default's, and one of the others' by turns."""
    rows, missing = AnswerRows(path), set[str]()
    watcher = Collecting(rows, minutes)
    for name, label, usual, place, scene, corruptions in _asked(only, streams, images):
        if name in missing:
            continue
        variant, watcher.at = VARIANTS[label], (label, name, scene.title)
        try:
            model, data, temperature = opened(place.model, place.data, usual)
            method = Compared(variant.create(model, {}, guard="off"))
            rows.at = method, temperature
            fields = row_fields(place.data, place.model, model) | codes()
            fields |= {"network": name, "variant": label}
            run = Run(variant.method, method, variant.batch_size or 1)
            evaluation_of(scene, [run], data, corruptions, SEVERITY, 0, fields).run(rows, watcher)
        except UnsuitableNetworkError:
            continue
        except TimeIsOver:
            return
        except UserError as error:
            click.echo(f"{name} is left out: {error}", err=True)
            missing.add(name)


def _asked(only: Sequence[str], streams: int, images: int) -> Iterator[tuple[Any, ...]]:
    """A stream of each network, then the next of each, so that time may be over at any time."""
    for number, (name, places) in product(range(streams), networks(only).items()):
        for stream in streams_at(places, images)[number : number + 1]:
            for label in (DEFAULT_LABEL, OTHERS[number % len(OTHERS)]):
                yield name, label, places[0].data, *stream


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
        sure: (n, 2) the highest probabilities.
        differ: (n,) whether they are two classes.
    """

    network: str
    variant: str
    features: Numbers
    right: Numbers
    sure: Numbers
    differ: Numbers

    @classmethod
    def of(
        cls, network: str, variant: str, beside: Arrays, served: Numbers, temperature: float | None
    ) -> Self:
        judge, labels = Recording(served.shape[1], temperature), beside["labels"]
        source, second = (np.exp(np.float64(beside[name])) for name in ("source", "restyled"))
        judge.after(source, second, served)
        classes = np.stack((served.argmax(1), source.argmax(1)), axis=1)
        right, differ = np.float64(classes == labels[:, None]), classes[:, 0] != classes[:, 1]
        softened = [judge._softened(each, temperature or 1.0).max(1) for each in (served, source)]
        found = np.stack(judge.features), right, np.stack(softened, axis=1), differ
        return cls(network, variant, *(each[labels >= 0] for each in found))

    @property
    def is_fitted(self) -> bool:
        """Whether numbers are fitted to its network."""
        return not self.network.startswith(("digits", "lite0"))

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
        network, variant = row["network"], row["variant"]
        served = np.exp(np.float64(beside["served"]))
        found.append(Seen.of(network, variant, beside, served, temperature))
        if variant == DEFAULT_LABEL:
            images, classes = served.shape
            for chosen in (random.integers(classes, size=1), random.integers(classes, size=images)):
                sure, rest = random.choice((0.5, 0.8, 0.95, 0.999)), random.random(served.shape)
                served = (1 - sure) * rest / rest.sum(1, keepdims=True) + sure * np.eye(classes)[
                    chosen
                ]
                found.append(Seen.of(network, MADE_UP, beside, served, temperature))
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
        chances: (n, 2) of each stream's images, by the numbers of the other networks.
        columns: (streams, 3) each: how wrong the estimate is, and what holds the truth.
    """

    def __init__(self, seen: Sequence[Seen], code: Table) -> None:
        self.seen, self.code = seen, code
        names = sorted({each.network for each in seen if each.is_fitted})
        sets = [frozenset(some) for n in range(3) for some in combinations(names, n)]
        self._fits = {without: fitted(seen, without) for without in sets}
        self.whole = self._table()
        tables = {name: self._table(name) for name in names}
        pairs = [(each, tables.get(each.network, self.whole)) for each in seen]
        self.chances = [each.chances(table) for each, table in pairs]
        self.columns = {
            "error": self._wrong(self.chances),
            "% held": np.array([each.held(table) for each, table in pairs]),
            "the code's": self._wrong(each.chances(code) for each in seen),
            "how sure": self._wrong(each.sure for each in seen),
        }

    def _table(self, *without: str) -> Table:
        """What is fitted, to all networks but some: intervals to how wrong what is fitted to the
        others is at each."""
        asked = [e for e in self.seen if e.is_fitted and e.variant != MADE_UP]
        residuals = [
            each.residuals(self._fits[frozenset((*without, each.network))])
            for each in asked
            if each.network not in without
        ]
        served, source, differ = np.quantile(residuals, 0.9, axis=0).tolist()
        return Table(self._fits[frozenset(without)].weights, served, source, differ)

    def _wrong(self, chances: Iterable[Numbers]) -> Numbers:
        pairs = zip(chances, self.seen, strict=True)
        return np.array([np.abs(_means(each) - seen.truth) for each, seen in pairs])


def told_numbers(*judgings: Judging) -> str:
    """The numbers in the code, and those that are fitted to all networks."""
    tables = [table for each in judgings for table in (each.code, each.whole)]
    columns = [(*table.weights, table.served, table.source, table.differ) for table in tables]
    rows = [[n, *(f"{x:.3f}" for x in row)] for n, *row in zip(NAMES, *columns, strict=True)]
    return _markdown(("", "code, T known", "fitted", "code, not known", "fitted"), rows)


def told_errors(*judgings: Judging) -> str:
    """Mean absolute errors in points, and intervals that hold the truth in %."""
    real, seen = f"all but {MADE_UP}", judgings[0].seen
    groups: dict[str, list[int]] = {real: []}
    for number, each in enumerate(seen):
        names = [each.variant] if each.is_fitted else []
        if each.variant != MADE_UP:
            names += [each.network, *([real] if each.is_fitted else [])]
        for name in names:
            groups.setdefault(name, []).append(number)
    values = [values for each in judgings for values in each.columns.values()]
    rows = []
    for name, some in sorted(groups.items(), key=lambda pair: (pair[0] != real, pair[0])):
        means = [100 * each[some].mean(0) for each in values]
        told = [
            " / ".join(f"{x:.{each.dtype != bool:d}f}" for x in mean)
            for each, mean in zip(values, means, strict=True)
        ]
        rows.append([name, str(len(some)), *told])
    header = [f"{k}{known}" for known in ("", ", T not known") for k in judgings[0].columns]
    return _markdown(("", "streams", *header), rows)


def told_alarms(*judgings: Judging) -> str:
    """Streams in which harm would be seen, of how many: with the temperature, and without."""
    random, rows = np.random.default_rng(0), []
    for slack in SLACKS:
        cells = []
        for judging in judgings:
            real = [i for i, e in enumerate(judging.seen) if e.is_fitted and e.variant != MADE_UP]
            gains = np.array([judging.seen[i].truth[2] for i in real])
            default = np.array([judging.seen[i].variant == DEFAULT_LABEL for i in real])
            rung = np.array([rings(judging.chances[i], slack) for i in real])
            lived = np.array([rings(_life(judging.chances[i], random), slack) for i in real])
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
    text = "\n".join(told(*judgings) for told in (told_numbers, told_errors, told_alarms))
    out.write_text(text)
    click.echo(text)


if __name__ == "__main__":
    main()
