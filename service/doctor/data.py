"""T3: whether data and model fit: classes, scale and normalisation, order of classes, mirroring."""

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from service.doctor.asked import Asked
from service.doctor.checks import Finding
from service.doctor.installation import OUT_OF_MEMORY
from ttc_core.datasets import DataSet, Stream, open_data
from ttc_core.errors import UserError
from ttc_core.evaluate import as_batch
from ttc_core.methods.parts.second_view import Bet, divergence_of_views, lost_certainty
from ttc_core.model import MAKER, SourceModel
from ttc_core.order import LONG_RUN

AT_ONCE = 50
# Each normalisation is tried on so many images at most.
TRIED = 200
# What counts as plainly better: so much of all images, and so many standard errors.
PLAIN, ERRORS = 0.05, 3.0
# Fewer images a class tell nothing of the order of classes.
IMAGES_A_CLASS = 5
ONE_CLASS = 0.95
# Of the normalisations, how many are told; machines get all.
SHOWN = 4

Right = NDArray[np.float64]
Three = tuple[float, float, float]


@dataclass(frozen=True)
class Normalisation:
    """A usual way of bringing values in [0, 1] to a network's input."""

    name: str
    mean: Three
    std: Three
    bgr: bool = False

    def __str__(self) -> str:
        return f"{self.name}, channels as BGR" if self.bgr else self.name


_IMAGENET = (0.485, 0.456, 0.406)
_NONE, _ONE, _HALF, _BYTE = (0.0,) * 3, (1.0,) * 3, (0.5,) * 3, (0.003921569,) * 3
USUAL = (
    Normalisation("values in [0, 1] without normalisation", _NONE, _ONE),
    Normalisation("ImageNet's", _IMAGENET, (0.229, 0.224, 0.225)),
    Normalisation("mean 0.5, deviation 0.5", _HALF, _HALF),
    Normalisation("CIFAR's", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    Normalisation("values of 0 to 255", _NONE, _BYTE),
    Normalisation("values of 0 to 255 less ImageNet's mean", _IMAGENET, _BYTE),
)


@dataclass(frozen=True)
class Seen:
    """What the checks after those of the data go by.

    Attributes:
        model: with the normalisation that was found to be right.
        data: where the images are from; chosen: (N,) the places of those that are looked at,
            ascending.
        changed: options of `ttc serve` that follow from what was found, flag → value.
        mirrored_differ: a mirror image means something else.
        unsolved: problems that no option mends, by code.
    """

    model: SourceModel
    data: DataSet
    chosen: NDArray[np.int64]
    changed: dict[str, str] = field(default_factory=dict)
    mirrored_differ: bool = False
    unsolved: tuple[str, ...] = ()

    def stream(self, corruption: str, places: NDArray[np.int64]) -> Stream:
        """The images at these places, under a corruption of severity 5 or "clean"."""
        whole = self.data.open(corruption, 5)
        return replace(whole, labels=whole.labels[places], positions=whole.positions[places])


def look_at_data(asked: Asked, model: SourceModel) -> Generator[Finding, None, Seen | None]:
    """Yield what is found of data and model together; return what to go by, if it can be read."""
    assert asked.data is not None
    try:
        seen = yield from _look_at_data(asked, model, asked.data)
    except (UserError, ValueError) as error:
        yield Finding("T301", "problem", str(error))
        return None
    except OUT_OF_MEMORY:
        yield Finding("T301", "problem", f"memory is too little for {AT_ONCE} images at once")
        return None
    return seen


def _look_at_data(asked: Asked, model: SourceModel, spec: str) -> Generator[Finding, None, Seen]:
    asked.say(f"Reading {spec} …")
    data = open_data(spec, model.geometry, model.class_names)
    whole = data.open("clean", 5)
    shuffled = np.random.default_rng(asked.seed).permutation(len(whole))
    seen = Seen(model, data, np.sort(shuffled[: asked.images]))
    labels = whole.labels[seen.chosen]
    first = seen.stream("clean", np.sort(shuffled[: min(TRIED, asked.images)]))
    tried = np.concatenate([images for images, _ in first.batches(AT_ONCE)])  # it can be read
    yield _described(asked, model, len(whole), labels)
    asked.say("Trying the usual normalisations …")
    finding, found = _normalisation(model, tried, first.labels)
    if found is not None and not _can_be_said(model, found):
        seen = replace(seen, unsolved=("T303",))
    elif found is not None:
        numbers = {"--mean": found.mean, "--std": found.std}
        seen = replace(
            seen,
            model=asked.load(mean=found.mean, std=found.std),
            changed={flag: ",".join(f"{each:g}" for each in of) for flag, of in numbers.items()},
        )
    asked.say(f"Answering {len(seen.chosen)} images and their mirror images …")
    stream = seen.stream("clean", seen.chosen)
    both = [_two_views(seen.model, images) for images, _ in stream.batches(AT_ONCE)]
    logits, mirrored = (torch.cat(each) for each in zip(*both, strict=True))
    answers = logits.argmax(dim=1).numpy()
    accuracy = _accuracy(seen.model, answers, labels)
    order = _order_of_classes(seen.model, answers, labels)
    mirror = _mirrored(logits, mirrored, labels)
    problems = [each.code for each in (accuracy, order) if each.verdict == "problem"]
    yield accuracy
    yield finding
    yield order
    yield mirror
    return replace(
        seen,
        mirrored_differ=mirror.verdict == "note",
        unsolved=(*seen.unsolved, *problems),
    )


def mean_and_error(values: Right) -> tuple[float, float]:
    """The mean of shares or differences, and its standard error; of one value anything, 1."""
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else 1.0
    return float(values.mean()), float(error)


def _described(asked: Asked, model: SourceModel, total: int, labels: NDArray[np.int64]) -> Finding:
    classes = len(np.unique(labels))
    runs = len(labels) / (1 + int((np.diff(labels) != 0).sum()))
    said = f"{len(labels):,} of {total:,} images, of {classes:,} of the model's {model.classes:,} "
    said += f"classes; in their natural order {runs:.1f} of a class follow one another"
    notes = []
    if total < asked.images:
        notes.append(f"fewer than the {asked.images:,} wished, so that errors are larger")
    if classes == 1:
        notes.append("of one class alone: accuracy and what methods bring say little")
    elif len(labels) < IMAGES_A_CLASS * classes:
        notes.append(f"fewer than {IMAGES_A_CLASS} a class")
    if runs > LONG_RUN and classes > 1:
        said += " (sorted by class, as no camera sends them; a file order of one's own is better)"
    return Finding(
        "T301",
        "note" if notes else "ok",
        "; ".join((said, *notes)),
        {"images": len(labels), "of": total, "classes": classes, "run": runs},
    )


def _normalisation(
    model: SourceModel, images: NDArray[np.uint8], labels: NDArray[np.int64]
) -> tuple[Finding, Normalisation | None]:
    """Try the usual ones; the one that is plainly better than the stated, if there is one."""
    stated = Normalisation("as stated", _three(model.mean), _three(model.std))
    asked = (stated, *USUAL)
    fits = {
        each: _fit(model, images, labels, each)
        for each in (*asked, *(replace(one, bgr=True) for one in asked))
    }
    ranked = sorted(fits, key=lambda each: -float(fits[each].right.mean()))  # of equals the first
    best = _surest(ranked[0], fits)
    numbers = {str(each): round(float(fits[each].right.mean()), 4) for each in ranked}
    shown = [each for each in ranked if each in ranked[:SHOWN] or each in (stated, best)]
    tried = "; ".join(f"{each}: {numbers[str(each)]:.1%}" for each in shown)
    order = _order_of_classes(model, fits[stated].answers, labels)
    most = float(fits[ranked[0]].right.mean())
    if order.verdict == "problem" and order.numbers["assigned"] > most:
        said = f"not to be told while classes are in another order, see T304 ({tried})"
        return Finding("T303", "note", said, {"accuracy": numbers, "found": None}), None
    if not _above_guessing(model, fits[ranked[0]].right):
        said = f"not to be told: by none are images answered better than by guessing ({tried})"
        return Finding("T303", "note", said, {"accuracy": numbers, "found": None}), None
    if not _plainly_better(fits[best].right, fits[stated].right):
        said = f"plausible: no usual one is plainly better on {len(labels)} images ({tried})"
        return Finding("T303", "ok", said, {"accuracy": numbers, "found": None}), None
    mean, std = (",".join(f"{each:g}" for each in of) for of in (best.mean, best.std))
    if best.bgr:
        how = "--mean and --std cannot say BGR: return the network behind x.flip(1) from a factory"
    elif not _can_be_said(model, best):
        how = f"have the factory state it: SourceModel(…, mean=({mean}), std=({std}))"
    else:
        how = f"state it with --mean {mean} --std {std}; the checks below go by it"
    said = f"the network was trained otherwise than is stated: {best} fits ({tried}); {how}"
    return Finding("T303", "problem", said, {"accuracy": numbers, "found": str(best)}), best


def _can_be_said(model: SourceModel, found: Normalisation) -> bool:
    """Whether --mean and --std say it: not BGR, nor where a factory's SourceModel states them."""
    return not found.bgr and model.origins.normalisation != MAKER


def _three(numbers: tuple[float, ...]) -> Three:
    return numbers[0], numbers[1], numbers[2]


def _plainly_better(right: Right, other: Right) -> bool:
    """Whether it is more often right than the other by PLAIN and ERRORS, image by image."""
    difference, error = mean_and_error(right - other)
    return difference > max(PLAIN, ERRORS * error)


@dataclass(frozen=True)
class Fit:
    """How well images are answered: (N,) the answers, and whether each is right, 1 or 0; the mean
    log probability of labels."""

    answers: NDArray[np.int64]
    right: Right
    likelihood: float


def _surest(best: Normalisation, fits: dict[Normalisation, Fit]) -> Normalisation:
    """Of those about as often right as the best, in the usual order of channels if one is: the one
    by which the labels are likeliest."""
    alike = []
    for each, fit in fits.items():
        less, error = mean_and_error(fits[best].right - fit.right)
        if less <= 2 * error or each == best:
            alike.append(each)
    usual = [each for each in alike if not each.bgr] or alike
    return max(usual, key=lambda each: fits[each].likelihood)


@torch.no_grad()
def _fit(
    model: SourceModel,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    normalisation: Normalisation,
) -> Fit:
    mean, std = (
        torch.tensor(each, device=model.device)[:, None, None]
        for each in (normalisation.mean, normalisation.std)
    )
    answers = []
    for unit in _units(model, images):
        unit = unit.flip(1) if normalisation.bgr else unit
        inputs = ((unit - mean) / std).to(model.dtype)
        answers.append(model.run(inputs).logits.cpu())
    logits = torch.cat(answers)
    likelihood = -F.cross_entropy(logits, torch.from_numpy(labels)).item()
    found = logits.argmax(dim=1).numpy()
    right = np.asarray(found == labels, np.float64)
    return Fit(found, right, likelihood if math.isfinite(likelihood) else -math.inf)


def _units(model: SourceModel, images: NDArray[np.uint8]) -> Iterator[Tensor]:
    for start in range(0, len(images), AT_ONCE):
        yield model.to_unit(as_batch(images[start : start + AT_ONCE]))


@torch.no_grad()
def _two_views(model: SourceModel, images: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """The logits (n, K) of images and of their mirror images, on the CPU."""
    inputs = model.normalize(model.to_unit(as_batch(images)))
    return model.run(inputs).logits.cpu(), model.run(inputs.flip(3)).logits.cpu()


def _accuracy(model: SourceModel, answers: NDArray[np.int64], labels: NDArray[np.int64]) -> Finding:
    accuracy, error = mean_and_error(np.asarray(answers == labels, np.float64))
    guessing = 1 / model.classes
    commonest = float(np.bincount(answers).max() / len(answers))
    several = len(np.unique(labels)) > 1
    said = f"{accuracy:.1%} ± {error:.1%} of {len(labels):,} clean images right"
    numbers = {"accuracy": accuracy, "error": error, "commonest_answer": commonest}
    if not _above_guessing(model, np.asarray(answers == labels, np.float64)):
        return Finding(
            "T302",
            "problem",
            f"{said}: no better than guessing ({guessing:.1%})",
            numbers,
        )
    if several and commonest > ONE_CLASS:
        name = model.class_names[int(np.bincount(answers).argmax())]
        return Finding("T302", "problem", f"{said}; {commonest:.0%} are answered {name}", numbers)
    if model.accuracy is not None and accuracy + ERRORS * max(error, 0.01) < model.accuracy:
        return Finding(
            "T302", "note", f"{said}; {model.accuracy:.1%} are stated for the model", numbers
        )
    return Finding("T302", "ok", said, numbers)


def _above_guessing(model: SourceModel, right: Right) -> bool:
    """By two standard errors of guesses: that of no right answers at all is 0."""
    guessing = 1 / model.classes
    return float(right.mean()) > guessing + 2 * math.sqrt(guessing * (1 - guessing) / len(right))


def _order_of_classes(
    model: SourceModel, answers: NDArray[np.int64], labels: NDArray[np.int64]
) -> Finding:
    classes = len(np.unique(labels))
    if classes < 2 or len(labels) < 2 * IMAGES_A_CLASS * classes:
        return Finding(
            "T304",
            "ok",
            f"not looked at: {len(labels)} images of {classes} "
            f"{'class' if classes == 1 else 'classes'} are too few to tell",
        )
    first = np.arange(len(labels)) % 2 == 0
    # Of the model's classes those that occur: there may be tens of thousands.
    occur = np.union1d(answers, labels)
    answered, meant = np.searchsorted(occur, answers), np.searchsorted(occur, labels)
    counts = np.zeros((len(occur), len(occur)))
    np.add.at(counts, (answered[first], meant[first]), 1)
    # As they are called, where nothing speaks against it.
    called = linear_sum_assignment(counts + 0.5 * np.eye(len(occur)), maximize=True)[1]
    as_is = np.asarray(answers[~first] == labels[~first], np.float64)
    otherwise = np.asarray(called[answered[~first]] == meant[~first], np.float64)
    numbers = {"as_named": float(as_is.mean()), "assigned": float(otherwise.mean())}
    if not _plainly_better(otherwise, as_is):
        return Finding("T304", "ok", "the classes are in the order of training", numbers)
    moved = [at for at in np.unique(meant) if called[at] != at][:3]
    named = ", ".join(
        f"{model.class_names[occur[at]]} means {model.class_names[occur[called[at]]]}"
        for at in moved
    )
    return Finding(
        "T304",
        "problem",
        f"the classes are in another order than in training: were they called otherwise "
        f"({named}, …), {otherwise.mean():.1%} in place of {as_is.mean():.1%} of {len(as_is)} "
        "images would be right; name folders or --class-names in the order of training",
        numbers,
    )


def _mirrored(logits: Tensor, mirrored: Tensor, labels: NDArray[np.int64]) -> Finding:
    differences = torch.stack(
        (divergence_of_views(logits, mirrored), lost_certainty(logits, mirrored)), dim=1
    )
    bet = Bet()
    for divergence, less_sure in differences.tolist():
        bet = bet if bet.lost else bet.after(divergence, less_sure)
    right, other = (
        np.asarray(each.argmax(dim=1).numpy() == labels, np.float64) for each in (logits, mirrored)
    )
    apart = float(differences[:, 0].mean())
    numbers = {"accuracy": float(right.mean()), "mirrored": float(other.mean())}
    numbers |= {"divergence": apart, "less_sure": float(differences[:, 1].mean())}
    said = f"{other.mean():.1%} of the mirror images right, {right.mean():.1%} of the images; the "
    said += f"answers differ by {apart:.3f} nats on average"
    if bet.lost or _plainly_better(right, other):
        return Finding(
            "T305",
            "note",
            f"a mirror image means something else to the model: {said}; "
            "--set ttc_stream.second_view=off, and no method ttc",
            numbers,
        )
    return Finding("T305", "ok", f"mirror images mean the same: {said}", numbers)
