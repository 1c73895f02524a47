"""What three answer to the same images, for `benchmarks.estimate`: they take half an hour.

Networks × streams × corruptions, mixed, the default and one other method on each, by the same walk
as `ttc evaluate`; the source and the restyled source answer every image beside them.
"""

import ast
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from benchmarks.harm import MOVING
from benchmarks.places import PLACES, Place
from benchmarks.streams import BATCH_SIZE, DEFAULT, SCENES, Scene, evaluation_of
from benchmarks.study import SEVERITY, Collecting, Study, TimeIsOver, methods_digest, scenes_of
from service.cli.evaluate import row_fields
from service.cli.options import load_model
from ttc_core.calibration_record import fitted_temperature, measured
from ttc_core.corruptions import CORRUPTIONS
from ttc_core.datasets import DataSet, open_data
from ttc_core.errors import UserError
from ttc_core.evaluate import Run, as_batch
from ttc_core.guard import restyled
from ttc_core.guard.restyled import Restyled
from ttc_core.guard.wrapper import Wrapper
from ttc_core.methods import Method, Prediction, UnsuitableNetworkError
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
USUAL, *OTHERS = VARIANTS
# Suspect frames are never compared; a stream of 2,000 images, or one that goes on, takes too long.
STREAMS = [
    scene
    for scene in SCENES
    if not scene.mix.startswith(("noise", "frozen"))
    and not scene.protocol.startswith(("recurring", "changing:500"))
]
# Images compared at a time; clean ones, the last of all, that a temperature is fitted to.
TOGETHER, LAST = 10, 1000


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
        names = (*place.corruptions, "clean")
        which = {"changing:100": [[*pair] for pair in pairwise(names)], "day-night": [["clean"]]}
        for scene in scenes_of(place, study):
            some = which.get(scene.protocol, [[name] for name in names])
            found += [(place, scene, each) for each in some]
    order = np.random.default_rng([*places[0].name.encode()]).permutation(len(found))
    return [found[number] for number in order]


@cache
def opened(spec: str, where: str, usual: str) -> tuple[SourceModel, DataSet, float]:
    """A network without its record, images, and the temperature by the record; for want of one by
    clean images of the usual data, of which a stream may hold some."""
    model = load_model(spec, "auto", None, None)
    asked = model.geometry, model.class_names
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


ROWS = click.option(
    "--rows", "path", type=Path, default="results/estimate.jsonl", show_default=True
)


@click.command()
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
            for label in (USUAL, OTHERS[number % len(OTHERS)]):
                yield name, label, places[0].data, *stream
