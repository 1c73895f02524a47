"""Offline evaluation: method × stream × batch size -> rows, those that are missing. No HTTP."""

import contextlib
from collections.abc import Container, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple, Protocol

from ttc_core.datasets import DataSet, Stream, changing, day_night, mixed_in
from ttc_core.errors import UserError
from ttc_core.evaluate import EvaluationError, Run, answered, warm_up
from ttc_core.features import FeatureRecorder
from ttc_core.frames import KINDS
from ttc_core.guard import calibrated, estimated
from ttc_core.methods import Method
from ttc_core.order import is_count
from ttc_core.poison import poisoned
from ttc_core.references import References
from ttc_core.rows import Arrays, Row, Rows
from ttc_core.supervised import Supervised
from ttc_core.tally import Tally

PROTOCOLS = "episodic, continual, changing:L, recurring:V (L and V from 1 on) or day-night"


def parse_protocol(text: str) -> tuple[str, int]:
    """The kind of a protocol, and the number behind its colon, 0 where it has none.

    Raises:
        ValueError: it is none of PROTOCOLS.
    """
    kind, _, number = text.partition(":")
    if text in ("episodic", "continual", "day-night"):
        return text, 0
    if kind not in ("changing", "recurring") or not is_count(number):
        raise ValueError(f"The protocol must be {PROTOCOLS}; got {text!r}.")
    return kind, int(number)


class Watcher(Protocol):
    """What wants to see an evaluation while it runs."""

    def found(self, run: Run, row: Row) -> None:
        """A row is there already; its pass is not run again."""

    def started(self, run: Run, stream: Stream) -> None:
        """A pass over a corruption begins."""

    def progressed(self, tally: Tally) -> None:
        """A batch was answered and adapted to."""

    def finished(self, run: Run, row: Row, columns: Arrays) -> None:
        """A pass is over; columns as of `answered`."""


class Asked(NamedTuple):
    """A row that is asked for.

    `number` is the place of its pass among a run's, `corruption` what that is over, as named,
    `row` what tells it from other rows.
    """

    number: int
    corruption: str
    stream: Stream
    row: Row


class Made(NamedTuple):
    """A pass that is over: its row but for the comparison with SOURCE, and what is kept of it."""

    row: Row
    columns: Arrays


class Step(NamedTuple):
    """What an evaluation needs next: a row that was found, or passes of one run.

    They follow one another without a reset if there are several. `place` is the run's among the
    evaluation's.
    """

    place: int
    run: Run
    asked: Sequence[Asked]
    found: Row | None


class Book:
    """Enters rows as passes end, each held against SOURCE's on the same images."""

    def __init__(self, rows: Rows) -> None:
        self._rows, self._references = rows, References(rows)

    def enter(self, run: Run, made: Made) -> Row:
        """Return the row, whole; it is among the rows, unless one of its setting was before."""
        row, columns = made
        row |= self._references.differences(row, columns, is_reference=run.is_reference)
        if self._rows.find(row) is not None:
            return row
        return self._rows.append(row, {k: v for k, v in columns.items() if k != "logits"})


@dataclass(frozen=True)
class Evaluation:
    """What to evaluate: runs × corruptions of one data set.

    Attributes:
        protocol: episodic resets before each corruption, continual never; `recurring:V` is
            continual over the corruptions, V times; `changing:L` and `day-night` are of a stream
            whose conditions change within (`ttc_core.datasets.conditions`), reset before it.
        fields: what is the same in every row (data, model, versions).
        logits: keep them among each pass's columns.
        channels: of the features, kept beside each row; a figure needs them.
        mix: which share of the images is replaced, by kind.
        unknown: where the unknown ones among them are from; None: drawn shapes.
    """

    runs: Sequence[Run]
    data: DataSet
    corruptions: Sequence[str]
    severity: int
    limit: int | None
    order: str
    protocol: str
    seed: int
    fields: dict[str, Any]
    logits: bool = False
    channels: Sequence[int] = ()
    mix: Mapping[str, float] = field(default_factory=dict)
    unknown: DataSet | None = None

    @cached_property
    def passes(self) -> list[tuple[str, int | None]]:
        """What each run passes over: a corruption, and which visit it is where they recur."""
        kind, number = parse_protocol(self.protocol)
        if kind == "recurring":
            return [(name, visit + 1) for visit in range(number) for name in self.corruptions]
        names = ["+".join(self.corruptions)] if kind == "changing" else self.corruptions
        return [(name, None) for name in names]

    @property
    def goes_on(self) -> bool:
        """Whether a method is never reset between the passes."""
        return parse_protocol(self.protocol)[0] in ("continual", "recurring")

    def run(self, rows: Rows, watcher: Watcher | None = None, *, anew: bool = False) -> list[Row]:
        """Fill in the rows that are missing; return all of them, SOURCE's first.

        Args:
            anew: run every pass, also those whose row is there.

        Raises:
            EvaluationError: code of a user's own failed; finished rows are kept.
        """
        all_rows, book = [], Book(rows)
        for step in self.steps(rows, anew=anew):
            run = step.run
            if step.found is not None:
                all_rows.append(step.found)
                if watcher is not None:
                    watcher.found(run, step.found)
                continue
            with contextlib.closing(self.answered(run, step.asked)) as answering:
                for told in answering:
                    if isinstance(told, Made):
                        all_rows.append(book.enter(run, told))
                    if watcher is None:
                        continue
                    if isinstance(told, Asked):
                        watcher.started(run, told.stream)
                    elif isinstance(told, Tally):
                        watcher.progressed(told)
                    else:
                        watcher.finished(run, all_rows[-1], told.columns)
        return all_rows

    def steps(self, rows: Rows, *, anew: bool = False) -> Iterator[Step]:
        """What there is to do, run by run, SOURCE's first; passes in their order.

        Args:
            rows: those that are there.
            anew: as if none were.
        """
        for place, run in sorted(enumerate(self.runs), key=lambda one: not one[1].is_reference):
            asked = self.asked(run)
            if self.goes_on:
                # A row depends on those before it: all up to the last that is missing are run.
                whole = list(asked)
                missing = [n for n, one in enumerate(whole, 1) if rows.find(one.row) is None]
                needed = len(whole) if anew else max(missing, default=0)
                if needed:
                    yield Step(place, run, whole[:needed], None)
                asked = iter(whole[needed:])
            for one in asked:
                yield Step(place, run, [one], None if anew else rows.find(one.row))

    def asked(self, run: Run, numbers: Container[int] | None = None) -> Iterator[Asked]:
        """The rows that are asked for of a run, in their order.

        Args:
            numbers: the places of those that are wanted; None: all.
        """
        for number, (corruption, visit) in enumerate(self.passes):
            if numbers is not None and number not in numbers:
                continue
            if corruption not in self._streams:
                self._streams[corruption] = self._open(corruption)
            stream = self._streams[corruption]
            row = self._row(run, stream) | {"data_digest": stream.digest}
            if self.goes_on:
                # "clean" itself has no severity, but comes after corruptions of one.
                earlier = [name for name, _ in self.passes[:number]]
                row |= {"after": earlier, "after_severity": self.severity}
            if visit is not None:
                row["visit"] = visit
            yield Asked(number, corruption, stream, row)

    def answered(
        self, run: Run, asked: Sequence[Asked]
    ) -> Generator[Asked | Tally | Made, None, None]:
        """Make passes of a run after one another, beginning at the source.

        Yields:
            Of each pass in turn: what is asked for when it begins; the tally after each batch, the
            same one; what was made of it.

        Raises:
            EvaluationError: code of a user's own failed.
        """
        with self._sentences(run, "at the start"):
            run.method.reset()
        for one in asked:
            with self._sentences(run, f"on {one.corruption}"):
                self._warm_up(run, one.stream)
                if not self.goes_on:
                    run.method.reset()
                yield one
                tally = yield from self._pass(run, one.stream)
            yield Made(one.row | self._results(run, tally), tally.columns)

    # Opened and hashed once for all methods: with files it takes a while.
    @cached_property
    def _streams(self) -> dict[str, Stream]:
        return {}

    @cached_property
    def _warm(self) -> set[int]:
        return set()

    def _warm_up(self, run: Run, stream: Stream) -> None:
        if id(run.method) not in self._warm:
            side = stream.read(stream.positions[:1]).shape[1]
            warm_up(run.method, side, images=min(run.batch_size, len(stream)))
            self._warm.add(id(run.method))

    @contextlib.contextmanager
    def _sentences(self, run: Run, where: str) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            raise EvaluationError(
                f"{run.name} with {self.fields.get('model')} failed {where}: {error}"
            ) from error

    def _pass(self, run: Run, stream: Stream) -> Generator[Tally, None, Tally]:
        if isinstance(run.method, Supervised):
            run.method.fit(stream, run.batch_size)
        if not self.channels:
            return (yield from answered(run.method, stream, run.batch_size, logits=self.logits))
        with FeatureRecorder(run.method.model, self.channels) as recorder:
            return (
                yield from answered(
                    run.method, stream, run.batch_size, logits=self.logits, recorder=recorder
                )
            )

    def _results(self, run: Run, tally: Tally) -> Row:
        row = tally.results(selects=run.method.selects) | tally.windows() | tally.calibration()
        if run.method.adapts - {"moments"}:
            row["learned_images"] = tally.learned
        if not self.goes_on:  # else it would be of the passes before as well
            row |= _estimated(run.method)
        if run.guard != "off":
            row |= {"held": tally.held, "guard_acts": tally.acts}
        if verdicts := run.method.verdicts.told:
            row["envelope_verdicts"] = verdicts
        return row | tally.suspects(KINDS)

    def _open(self, name: str) -> Stream:
        kind, number = parse_protocol(self.protocol)
        asked: dict[str, Any] = {"limit": self.limit, "order": self.order, "seed": self.seed}
        if kind == "changing":
            stream = changing(self.data, self.corruptions, self.severity, number, **asked)
        else:
            stream = self.data.open(name, self.severity, **asked)
        if self.mix:
            stream = mixed_in(
                stream,
                self.mix,
                severity=self.severity,
                seed=self.seed,
                unknown=self.unknown,
                poison=partial(poisoned, self.runs[0].method.model),
            )
        return day_night(stream, self.seed) if kind == "day-night" else stream

    def _row(self, run: Run, stream: Stream) -> Row:
        # Among the settings, so that a table still has it beside other methods.
        code = {} if run.code is None else {"code_digest": run.code}
        calibrated_by, record_temperature = calibrated(run.method)
        row = {
            "method": run.name,
            "corruption": stream.corruption,
            "severity": stream.severity,
            "order": self.order,
            "protocol": self.protocol,
            "batch_size": run.batch_size,
            "limit": self.limit,
            "seed": self.seed,
            "settings": dict(run.method.settings) | code,
            "calibrated": calibrated_by,
            "record_temperature": record_temperature,
            "guard": run.guard,
            **self.fields,
        }
        if run.envelope is not None:
            row["envelope"] = run.envelope
        if self.mix:
            row["mix"] = ",".join(f"{kind}:{share:g}" for kind, share in self.mix.items())
        if self.channels:
            row["channels"] = list(self.channels)
        return row


def _estimated(method: Method) -> dict[str, float]:
    """What a guard estimates of the accuracy, the source's and the difference, without labels."""
    found = estimated(method)
    if found is None:
        return {}
    named = {
        "estimated_accuracy": found.adapted,
        "estimated_source_accuracy": found.source,
        "estimated_difference": found.difference,
    }
    return {
        f"{name}{end}": value
        for name, each in named.items()
        for end, value in (("", each.accuracy), ("_low", each.low), ("_high", each.high))
    } | {"compared": found.images}
