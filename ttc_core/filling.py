"""Networks filled from what a file of weights holds, with as many classes as it has."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ttc_core.checkpoint import MOST_SETS, Checkpoint, Weights, shortened, unwrapped
from ttc_core.errors import LoadError, told

# Where a file's names say of several networks which is the one to serve; the preferred first.
PREFERRED = ("ema_model", "model_ema", "ema", "averaged_model", "teacher", "model", "net")
NAMED = 5
# A network of so many classes is made to see which of its weights are the head's: nothing else in
# one has as many rows.
ODD = 1013
IMAGENET_CLASSES = 1000


def filled(
    name: str, build: Callable[[int], nn.Module], checkpoint: Checkpoint, file: str
) -> tuple[nn.Module, int, list[str]]:
    """The network with as many classes as the file has, filled from it; and what is to be said.

    Args:
        build: makes the network, of so many classes.

    Raises:
        LoadError: the file has none that fits, or several with other numbers of classes, as
            distilling leaves them: which of them is meant cannot be told.
    """
    try:
        with torch.device("meta"):  # where nothing is drawn at random, nor takes memory
            sample = build(ODD)
    except Exception:  # some compute as they are made
        sample = build(ODD)
    heads = [
        key
        for key, tensor in sample.state_dict().items()
        if tensor.ndim >= 2 and len(tensor) == ODD
    ]
    counts = class_counts(sample.state_dict(), ODD, checkpoint.sets)
    if len(set(counts.values())) > 1:
        several = ", ".join(f"{place} has {count:,}" for place, count in counts.items())
        raise LoadError(
            f"{file} holds networks that fit {name} and differ in their classes: {several}. Save "
            "the weights that are to be served alone, with torch.save or as safetensors."
        )
    found = next(iter(counts.values()), None) or checkpoint.classes(heads)
    classes = found or IMAGENET_CLASSES
    module = build(classes)
    try:
        return module, classes, fill(module, checkpoint.sets, file)
    except LoadError as error:
        if found is not None:
            raise LoadError(f"{str(error).rstrip('.')}. It was filled as {name}.") from None
        raise LoadError(
            f"{str(error).rstrip('.')}. {name} has its head in {' and '.join(heads)}, by whose "
            "rows classes are counted, and the file has none of them: with a head of one's own, "
            "name a function that makes the network, as package.module:factory@FILE."
        ) from None


@dataclass(frozen=True)
class _Candidate:
    """A part of a file that may be the network's weights: a set, or what lies under a prefix in it.

    Attributes:
        names: in the network, by those that the file may have for them.
        size: of the set, in tensors.
    """

    place: str
    prefix: str
    state: Weights
    names: Mapping[str, str]
    size: int

    def __str__(self) -> str:
        where = repr(self.place) if self.place else "at the top level"
        return f"{where} under {self.prefix!r}" if self.prefix else where


def _candidates(expected: Weights, found: Mapping[str, Weights]) -> Iterator[_Candidate]:
    """The preferred first."""
    own = {unwrapped(name): name for name in expected if not _is_counter(name)}
    if len(own) < sum(not _is_counter(name) for name in expected):
        own = {name: name for name in expected if not _is_counter(name)}
    for place, weights in found.items():
        given = {name: tensor for name, tensor in weights.items() if not _is_counter(name)}
        for names in _without_common_prefixes(own):
            for prefix, state in _variants(given, names):
                yield _Candidate(place, prefix, state, names, len(given))


def class_counts(
    sample: Mapping[str, Tensor], odd: int, found: Mapping[str, Weights]
) -> dict[str, int]:
    """Count the classes of each network in a file that is the sample's but for their number.

    Args:
        sample: a state dict of that network with `odd` classes; nothing else has as many rows.

    Returns:
        Their classes by where they lie, to show; the preferred first.
    """
    expected = {name: tensor for name, tensor in sample.items() if isinstance(tensor, Tensor)}
    ends = {name for name, tensor in expected.items() if tensor.ndim and len(tensor) == odd}
    counts: dict[str, int] = {}
    for candidate in _candidates(expected, found):
        state, names = candidate.state, candidate.names
        heads = [name for name in names if names[name] in ends and name in state]
        rows = {len(state[name]) for name in heads if state[name].ndim}
        if len(rows) != 1:
            continue
        (classes,) = rows
        wanted = {name: expected[own] for name, own in names.items()}
        for name in heads:
            wanted[name] = wanted[name].new_empty(classes, *wanted[name].shape[1:], device="meta")
        if not _problems(wanted, state, names):
            counts.setdefault(str(candidate), classes)
    return counts


def fill(module: nn.Module, found: Mapping[str, Weights], origin: object) -> list[str]:
    """Load the first set of weights that fits the network.

    Returns:
        Sentences about what was chosen, where there was a choice.

    Raises:
        LoadError: none fits; the sentence names some keys that are missing, left over or of
            another shape, and how many there are.
    """
    expected = {name: t for name, t in module.state_dict().items() if isinstance(t, Tensor)}
    best: list[str] | None = None
    for candidate in _candidates(expected, found):
        state, names = candidate.state, candidate.names
        problems = _problems({n: expected[names[n]] for n in names}, state, names)
        if not problems:
            _load_into(module, {names[name]: state[name] for name in names}, origin)
            return _choice(origin, candidate, found)
        if best is None or len(problems) < len(best):
            best = problems
    assert best is not None
    more = f"; and {len(best) - NAMED:,} more" if len(best) > NAMED else ""
    raise LoadError(f"{origin} does not fit the network: {'; '.join(best[:NAMED])}{more}.")


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _without_common_prefixes(names: dict[str, str]) -> Iterator[dict[str, str]]:
    """A network's own names may begin with what a file's lack."""
    yield names
    first = {name.partition(".")[0] for name in names}
    if len(first) == 1 and names.keys().isdisjoint(first):
        shorter = {name.partition(".")[2]: own for name, own in names.items()}
        yield from _without_common_prefixes(shorter)


def _variants(given: Weights, expected: Collection[str]) -> Iterator[tuple[str, Weights]]:
    """The weights as they are, then those under each prefix that expected names lie under.

    It may be any: the attribute in which a training script's own module held the network.
    """
    yield "", given
    found: Counter[str] = Counter()
    for name in given:
        parts = name.split(".")
        for place in range(1, len(parts)):
            if ".".join(parts[place:]) in expected:
                found[".".join(parts[:place]) + "."] += 1
    prefixes = [prefix for prefix, _ in found.most_common(MOST_SETS)]
    for prefix in sorted(prefixes, key=_rank):
        yield prefix, {n.removeprefix(prefix): t for n, t in given.items() if n.startswith(prefix)}


def _rank(prefix: str) -> int:
    parts = prefix.split(".")
    return min((n for n, name in enumerate(PREFERRED) if name in parts), default=len(PREFERRED))


def _problems(expected: Weights, given: Weights, names: Mapping[str, str]) -> list[str]:
    problems = [f"missing {shortened(names[name])}" for name in sorted(expected.keys() - given)]
    problems += [f"left over {shortened(name)}" for name in sorted(given.keys() - expected)]
    for name in sorted(expected.keys() & given):
        wanted, tensor = expected[name], given[name]
        if nn.parameter.is_lazy(wanted):
            continue
        if tensor.shape != wanted.shape:
            shapes = f"{tuple(tensor.shape)}, not {tuple(wanted.shape)}"
            problems.append(f"{names[name]} has shape {shapes}")
        elif wanted.is_floating_point() and not tensor.is_floating_point():
            problems.append(f"{names[name]} holds {tensor.dtype}, not {wanted.dtype}")
    return problems


def _load_into(module: nn.Module, state: Weights, origin: object) -> None:
    filling = OrderedDict(state)
    # Of which version each layer's names are; MNASNet refuses what says none.
    filling._metadata = module.state_dict()._metadata  # type: ignore[attr-defined]
    try:
        module.load_state_dict(filling, strict=False)
    except Exception as error:  # a network's own loading may raise anything
        raise LoadError(f"{origin} could not be loaded into the network: {told(error)}.") from error


def _choice(origin: object, taken: _Candidate, found: Mapping[str, Weights]) -> list[str]:
    # A few tensors beside the weights are no other network.
    others = [
        other or "the top level"
        for other, weights in found.items()
        if other != taken.place and 2 * len(weights) > len(found[taken.place])
    ]
    left = taken.size - len(taken.state)
    if not others and not left:
        return []
    beside = [f"not those in {', '.join(map(shortened, others[:NAMED]))}"] if others else []
    beside += [f"{left:,} other tensors were left"] if left else []
    said = " and ".join(beside)
    return [f"{origin} holds more than one network: the weights {taken} were taken, {said}."]
