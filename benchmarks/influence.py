"""What one image can do to the answers of others: `python -m benchmarks.influence`.

    python -m benchmarks.influence [--images 1000] [--corruption gaussian_noise] [--settings]

The served default on the bundled network, its stream shuffled. After 1, 20 and 300 images the
stream is forked, one odd image is given to it, and the answers to the same other images, each as
if it were the next, are compared with those of the stream without it; once more where its
gradient is the last before a step of the optimizer. Then what odd images do that come in a row,
again and again. With --settings: which lower all that, and what they cost. Some minutes each.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import click
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ttc_core.corruptions import corrupt
from ttc_core.datasets import Geometry, open_data
from ttc_core.datasets.conditions import Shapes
from ttc_core.evaluate import as_batch
from ttc_core.load import load
from ttc_core.methods import DEFAULT_METHOD, Method, create
from ttc_core.methods.contract import HELD
from ttc_core.methods.parts import stream_statistics
from ttc_core.methods.parts.conditions import looks_of
from ttc_core.methods.parts.stream_statistics import StreamLook, StreamShare
from ttc_core.methods.ttc_stream import TTCStream
from ttc_core.model import SourceModel
from ttc_core.normalization import Call, Rows
from ttc_core.poison import poisoned

Images = NDArray[np.uint8]
AGES = (1, 20, 300)
SEVERITY, BATCH, OTHERS = 5, 10, 16
WARM_START = "WARM_START"


KINDS = (
    *("ordinary", "sign steps", "furthest", "unlike its mirror image", "pure noise", "one colour"),
    *("black, white", "saturated blocks", "stripes", "drawn shapes", "other weather", "negative"),
)
STRONGEST = ("furthest", "saturated blocks", "drawn shapes", "other weather")


@dataclass(frozen=True)
class Others:
    """The answers to some images, each as if it were the next: (N, K) logits, (N,) classes."""

    logits: Tensor
    classes: Tensor


@dataclass
class Apart:
    """The look at images that share a pass, each as if it came alone."""

    look: StreamLook
    rows: Rows
    found: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, call: Call) -> Tensor:
        look, name = self.look, call.layer
        both = call.image_moments()
        found = both.view(2, len(both) // 2, *both.shape[1:]).mean(0)
        self.found[name] = found
        mean, square = (look.kept[name] + look.moves[name] * found).unbind(1)
        variance = (square - mean.square()).clamp(min=0)
        twice = mean.repeat(2, 1), variance.repeat(2, 1)
        return replace(call, rows=self.rows).normalized(*twice)


@torch.no_grad()
def answers(watched: Method, images: Tensor) -> Others:
    """Of a stream as it stands, to (N, 3, H, W), as one predicted alone would have them."""
    method = inside(watched)
    model, statistics, classes = method.model, method._statistics, method._diversity.classes
    inputs = model.normalize(model.to_unit(images))
    if watched.mode == HELD:
        logits = model.run(inputs).logits
        return Others(logits, logits.argmax(dim=1))
    trust = statistics.trust(method._shadow.doubt, statistics.followed)
    look = statistics.look(1, classes, classes.opening, trust)
    both = torch.cat((inputs, inputs.flip(3)))
    rows = Rows.of([1] * len(both), inputs.device)
    apart = Apart(look, rows)
    seen = model.run(both, affine=method._learner.affine, look=apart).logits
    first, second = seen.view(2, len(inputs), -1)
    logits = first if method._second_view.bet.suspicious else (first + second) / 2
    looks = looks_of(model, StreamShare(len(images), apart.found))
    assert looks is not None
    cuts = [method._scenes.scene.after(each)[1] for each in looks]
    told = [
        method._prior.answers(row[None], [method.contextual], [cut])[0]
        for row, cut in zip(logits, cuts, strict=True)
    ]
    return Others(logits, torch.cat(told).argmax(dim=1))


def inside(method: Method) -> TTCStream:
    """The method without what watches it."""
    while not isinstance(method, TTCStream):
        method = method.inner  # type: ignore[attr-defined]
    return method


def give(method: Method, images: Tensor, size: int = BATCH) -> Tensor:
    """Answer and learn from (N, 3, H, W), batch after batch; (N,) the classes answered."""
    said = []
    for batch in images.split(size):
        prediction = method.predict(batch)
        said.append(prediction.probabilities.argmax(dim=1))
        method.adapt(prediction)
    return torch.cat(said)


def odd_images(model: SourceModel, ordinary: Images) -> Mapping[str, Callable[[int], Images]]:
    """What makes so many of each kind, some of them of ordinary ones."""
    draw, shape = np.random.default_rng(0), ordinary.shape[1:]
    side = shape[0]

    def some(count: int) -> Images:
        return ordinary[np.arange(count) % len(ordinary)]

    def shapes(count: int) -> Images:
        return Shapes(side, side, 0).shift("clean", SEVERITY, 0).read(np.arange(count))

    def saturated(count: int) -> Images:
        """Blocks of 2 to 16 pixels, each channel 0 or 255."""
        made = np.empty((count, *shape), np.uint8)
        for image in made:
            size = int(draw.choice((2, 4, 8, 16)))
            blocks = draw.integers(0, 2, (side // size, side // size, 3)) * 255
            image[:] = np.kron(blocks, np.ones((size, size, 1)))
        return made

    def colours(count: int) -> Images:
        """Of one colour."""
        return np.broadcast_to(draw.integers(0, 256, (count, 1, 1, 3), np.uint8), (count, *shape))

    def grids(count: int) -> Images:
        """Stripes and chequers of full contrast, 1 to 8 pixels wide."""
        y, x = np.mgrid[:side, :side]
        made = np.empty((count, *shape), np.uint8)
        for image in made:
            width, kind = int(draw.integers(1, 9)), int(draw.integers(3))
            places = (y, x, y + x)[kind] // width % 2
            image[:] = np.where(places[..., None], *draw.integers(0, 2, (2, 3)) * 255)
        return made

    def ends(count: int) -> Images:
        """Black and white by turns."""
        level = np.arange(count, dtype=np.uint8)[:, None, None, None] % 2 * 255
        return np.broadcast_to(level, (count, *shape))

    return {
        "ordinary": some,
        "sign steps": lambda count: poisoned(model, some(count)),
        "furthest": lambda count: furthest(model, some(count)),
        "unlike its mirror image": lambda count: two_faced(model, some(count)),
        "pure noise": lambda count: draw.integers(0, 256, (count, *shape), np.uint8),
        "one colour": colours,
        "black, white": ends,
        "saturated blocks": saturated,
        "stripes": grids,
        "drawn shapes": shapes,
        "other weather": lambda count: corrupt(some(count), "contrast", SEVERITY),
        "negative": lambda count: 255 - some(count),
    }


def furthest(model: SourceModel, images: Images) -> Images:
    """Moved, without a bound, until their moments are furthest from the source's in all layers."""
    return attacked(model, images, steps=12, level=24, loss=lambda m, x: -_away(m, x))


def _away(model: SourceModel, inputs: Tensor) -> Tensor:
    away = []

    def look(call: Call) -> Tensor:
        mean, square = call.image_moments().unbind(1)
        off = (mean - call.mean).square() + (square - mean.square() - call.variance).abs()
        away.append((off / (call.variance + 1e-3)).mean(1))
        return call.normalized(call.mean, call.variance)

    model.run(inputs, look=look)
    return torch.stack(away).log1p().sum()


def two_faced(model: SourceModel, images: Images) -> Images:
    """Moved by up to 32 levels until the mirror image is surely of another class."""

    def loss(model: SourceModel, inputs: Tensor) -> Tensor:
        first, second = (model.run(each).logits for each in (inputs, inputs.flip(3)))
        wanted = torch.zeros(len(first), dtype=torch.long)
        return F.cross_entropy(first, wanted) + F.cross_entropy(second, wanted + 1)

    return attacked(model, images, steps=8, level=4, loss=loss)


def attacked(
    model: SourceModel,
    images: Images,
    *,
    steps: int,
    level: int,
    loss: Callable[[SourceModel, Tensor], Tensor],
) -> Images:
    """Sign steps of so many grey levels down a loss of normalised inputs."""
    levels = as_batch(images).float()
    for _ in range(steps):
        levels = levels.detach().requires_grad_()
        with torch.enable_grad():
            found = loss(model, model.normalize(model.to_unit(levels / 255)))
            (slope,) = torch.autograd.grad(found, levels)
        levels = (levels - level * slope.sign()).clamp(0, 255)
    moved: Images = levels.detach().permute(0, 2, 3, 1).to(torch.uint8).numpy()
    return moved


@dataclass
class Influence:
    """What images of a kind did, one at a time: (M,) each.

    Attributes:
        suspect: whether it was kept out.
        restart: whether statistics began anew with it.
        logits: the largest change of any logit of the others.
        changed: which share of the others is answered with another class.
    """

    suspect: NDArray[np.bool_]
    restart: NDArray[np.bool_]
    logits: NDArray[np.float64]
    changed: NDArray[np.float64]


def influence(
    method: Method, odd: Tensor, others: Tensor, usual: Tensor | None = None
) -> Influence:
    """Give each of (M, 3, H, W) to the stream as it stands, alone; the stream stays as it was.

    Args:
        usual: (1, 3, H, W), what comes in its place where it does not; None: nothing does.
    """
    state, found = method.state(), []
    before = untouched = answers(method, others)
    if usual is not None:
        give(method, usual)
        before = answers(method, others)
    for image in odd:
        method.restore(state)
        images = inside(method)._statistics.followed.early_images
        prediction = method.predict(image[None])
        method.adapt(prediction)
        suspect = any(prediction.suspects)
        now = untouched if suspect else answers(method, others)
        found.append(
            (
                suspect,
                inside(method)._statistics.followed.early_images < images,
                float((now.logits - before.logits).abs().max()),
                float((now.classes != before.classes).double().mean()),
            )
        )
    method.restore(state)
    return Influence(*map(np.array, zip(*found, strict=True)))


@dataclass(frozen=True)
class Own:
    """A stream's own images with their classes, others that it never gets, and what odd ones are
    made of."""

    images: Tensor
    labels: Tensor
    others: Tensor
    spare: Images

    @classmethod
    def read(cls, corruption: str) -> "Own":
        stream = open_data("bundled", Geometry(32)).open(corruption, SEVERITY, order="iid")
        images, labels = map(np.concatenate, zip(*stream.batches(500), strict=True))
        first, others, spare = np.split(images, (700, 700 + OTHERS))
        return cls(as_batch(first), torch.from_numpy(labels), as_batch(others), spare)

    def right(self, said: Tensor, start: int) -> Tensor:
        """Whether what was said of the images from a place on is right, in %."""
        return 100 * (said == self.labels[start : start + len(said)]).double()

    def answered_wrongly(self, method: Method, count: int) -> Tensor:
        """So many of the spare, (M, 3, H, W), whose class the stream as it stands does not say."""
        given, right = as_batch(self.spare), self.labels[len(self.labels) - len(self.spare) :]
        said = [answers(method, part).classes for part in given.split(100)]
        return given[torch.cat(said) != right][:count]


def to_step(method: Method, own: Own, start: int) -> int:
    """Let a stream go on until the next image learned from makes the optimizer step, if within 100
    images it comes so far; return the place reached."""
    inner = inside(method)
    for place in range(start, start + 100):
        if inner._learner.pending_images == inner.settings["samples_per_step"] - 1:
            return place
        give(method, own.images[place][None])
    return start + 100


@dataclass(frozen=True)
class InARow:
    """Accuracy of a stream's own images in %: between odd ones, and of the 100 after all of them;
    how often statistics began anew."""

    between: float
    after: float
    restarts: int


def in_a_row(method: Method, own: Own, odd: Tensor, *, at_once: int, every: int) -> InARow:
    """So many odd images before each `every` of the stream's own, which are 200; then 100 of them.

    The stream stays as it was, after 300 images.
    """
    state, said, place, restarts = method.state(), list[Tensor](), 0, 0
    statistics = inside(method)._statistics

    def counted(images: Tensor) -> Tensor:
        nonlocal restarts
        classes = []
        for image in images:
            before = statistics.followed.early_images
            classes.append(give(method, image[None]))
            restarts += statistics.followed.early_images < before
        return torch.cat(classes)

    for start in range(300, 500, every):
        if at_once:
            counted(odd[torch.arange(place, place + at_once) % len(odd)])
            place += at_once
        said.append(counted(own.images[start : start + every]))
    between = own.right(torch.cat(said), 300)
    after = own.right(counted(own.images[500:600]), 500)
    method.restore(state)
    return InARow(float(between.mean()), float(after.mean()), restarts)


Made = Mapping[str, Tensor]


def influences(method: Method, own: Own, odd: Made, ages: tuple[int, ...] = AGES) -> Table:
    """What single images of each kind do, at several ages; the method then has had 300."""
    title = "Others' logits change by at most, mean; answers changed, mean (at most) %"
    table = Table("one image of", "kept out, %", title=title)
    cells: dict[str, list[str]] = {kind: [] for kind in odd}
    at = 0

    def measure(name: str, usual: Tensor | None = None) -> None:
        table.add_column(name)
        for kind, images in odd.items():
            found = influence(method, images, own.others, usual)
            told = (
                f"{found.logits.max():.2f}, {found.logits.mean():.2f}; "
                f"{100 * found.changed.mean():.1f} ({100 * found.changed.max():.0f})"
            )
            if found.restart.any():
                told += f" restarts {100 * found.restart.mean():.0f} %"
            if not cells[kind]:
                cells[kind].append(f"{100 * found.suspect.mean():.0f}")
            cells[kind].append(told)

    for age in ages:
        give(method, own.images[at:age])
        at = age
        measure(f"after {age}")
    state = method.state()
    place = to_step(method, own, at)
    measure("as a step is due", own.images[place][None])
    method.restore(state)
    for kind, row in cells.items():
        table.add_row(kind, *row)
    return table


def rows_of_them(method: Method, own: Own, odd: Made) -> Table:
    """What odd images do that come in a row, or singly, and the same of them again and again."""
    table = Table("odd images", title="Accuracy between odd images, of the next 100; restarts")
    patterns = ((12, 20), (1, 9))
    for at_once, every in patterns:
        table.add_column(f"{at_once} before each {every} of its own")
    again = {
        "two drawn, by turns": odd["drawn shapes"][:2],
        "twelve answered wrongly": own.answered_wrongly(method, 12),
        "one answered wrongly": own.answered_wrongly(method, 1),
    }
    for kind, images in {"none": own.others[:0], **odd, **again}.items():
        cells = []
        for at_once, every in patterns:
            count = at_once if len(images) else 0
            found = in_a_row(method, own, images, at_once=count, every=every)
            cells.append(f"{found.between:.1f}, {found.after:.1f}; {found.restarts}")
        table.add_row(kind, *cells)
    said = source(method.model, own.images[300:600])
    right = own.right(said, 300)
    table.add_row("SOURCE, of the same", f"{right[:200].mean():.1f}, {right[200:].mean():.1f}")
    return table


@torch.no_grad()
def source(model: SourceModel, images: Tensor) -> Tensor:
    """(N,) the classes that the network says by itself."""
    inputs = model.normalize(model.to_unit(images))
    classes: Tensor = model.run(inputs).logits.argmax(dim=1)
    return classes


# What lowers the influence; the last is no setting.
LOWER: Sequence[Mapping[str, Any]] = (
    {},
    {"early_horizon": 100},
    {"early_horizon": 200},
    {"late_horizon": 1600},
    {"blend": 0.5},
    {"blend": 0.3},
    {"samples_per_step": 200},
    {"learn": "never"},
    {WARM_START: 64},
)


def with_settings(model: SourceModel, own: Own, odd: Made, *, changed: Own) -> Table:
    """What settings do to it, and what they cost."""
    table = Table(
        *("setting", "own images, first 100", "to 300", "first 100 after a change"),
        *(
            "one image: logits after 1",
            "after 300",
            "as a step is due",
            "12 in a row: between, after",
        ),
    )
    strongest = torch.cat([odd[kind][:4] for kind in STRONGEST])
    for settings in LOWER:
        given = {name: value for name, value in settings.items() if name != WARM_START}
        warm = settings.get(WARM_START, stream_statistics.WARM_START)
        with mock.patch.object(stream_statistics, WARM_START, warm):
            method = create(DEFAULT_METHOD, model, guard="on", **given)
            said = [give(method, own.images[:1])]
            most = [influence(method, strongest, own.others).logits.max()]
            said.append(give(method, own.images[1:300]))
            most.append(influence(method, strongest, own.others).logits.max())
            state, place = method.state(), to_step(method, own, 300)
            usual = own.images[place][None]
            most.append(influence(method, strongest, own.others, usual).logits.max())
            method.restore(state)
            right = own.right(torch.cat(said), 0)
            after = changed.right(give(method, changed.images[300:400]), 300)
            method.restore(state)
            found = in_a_row(method, own, odd["drawn shapes"], at_once=12, every=20)
        print(".", end="", flush=True)
        table.add_row(
            ", ".join(f"{name}={value}" for name, value in settings.items()) or "as they are",
            *(f"{float(part.mean()):.1f}" for part in (right[:100], right[100:], after)),
            *(f"{each:.2f}" for each in most),
            f"{found.between:.1f}, {found.after:.1f}",
        )
    return table


@click.command()
@click.option("--images", default=1000, show_default=True, type=click.IntRange(len(KINDS)))
@click.option("--corruption", default="gaussian_noise", show_default=True)
@click.option("--settings", is_flag=True, help="Only what settings do to it, and cost.")
def main(images: int, corruption: str, settings: bool) -> None:
    """Print the tables, each once it is measured."""
    torch.set_num_threads(1)
    console, model, own = Console(width=160), load("bundled"), Own.read(corruption)
    make = odd_images(model, own.spare)
    odd = {kind: as_batch(make[kind](-(-images // len(KINDS)))) for kind in KINDS}
    if settings:
        changed = Own.read("fog" if corruption != "fog" else "contrast")
        console.print(with_settings(model, own, odd, changed=changed))
        return
    method = create(DEFAULT_METHOD, model, guard="on")
    console.print(influences(method, own, odd))
    console.print(rows_of_them(method, own, odd))


if __name__ == "__main__":
    main()
