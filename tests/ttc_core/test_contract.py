"""What every method promises, written once and run on each in several settings.

Cases: every name in METHODS as it comes, the statistics, flips and switches that change the walk
of a batch, networks without BatchNorm, and a class of a user's own.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.fixtures.networks import CLASSES, SIZE, make_images, make_model
from ttc_core.methods import METHODS, Adaptation, Method, Prediction, State, create, method_class
from ttc_core.model import SourceModel
from ttc_core.objective import entropy
from ttc_core.state import load_state, save_state

BATCH = 6
OWN_METHOD = "tests.fixtures.methods:ClassBalance"
MOVED = ("affine", "moments", "supports")


@dataclass(frozen=True)
class Case:
    """A method, its settings, and the kind of network it runs on."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    network: str = "batch-norm"

    @property
    def id(self) -> str:
        settings = [f"{key}={value}" for key, value in self.settings.items()]
        network = [self.network] if self.network != "batch-norm" else []
        return "-".join([self.name.rpartition(":")[2], *settings, *network])

    @property
    def selects(self) -> bool:
        return method_class(self.name).selects

    @property
    def learns(self) -> bool:
        return "affine" in method_class(self.name).adapts


def ttc(network: str = "batch-norm", **settings: Any) -> Case:
    """TTC that steps after every second batch of these tests."""
    return Case("ttc", {"samples_per_step": 2 * BATCH, **settings}, network)


def eta(network: str = "batch-norm", **settings: Any) -> Case:
    """ETA that learns from the answers of an untrained network, which are anything but sure."""
    return Case("eta", {"entropy_fraction": 1.0, "redundancy_margin": 1.01, **settings}, network)


CASES = [
    # As they come TTC would not step within a test, and ETA would find no answer sure enough.
    *(Case(name) for name in METHODS if name not in ("eta", "ttc")),
    Case(OWN_METHOD),
    Case("norm", {"source_images": 16}),
    Case("norm", {"statistics": "source"}),
    Case("norm", {"statistics": "moving"}),
    Case("norm", {"flip": True}),
    Case("norm", {"flip": True, "statistics": "moving"}),
    Case("t3a", {"filter": 12}),
    Case("t3a", {"filter": -1}),
    Case("t3a", {"statistics": "batch"}),
    Case("t3a", {"statistics": "moving"}),
    Case("t3a", {}, "layer-norm"),
    eta(),
    eta(statistics="source"),
    eta(statistics="moving"),
    eta(optimizer="sgd", lr=0.05),
    eta("group-norm"),
    eta("layer-norm", statistics="moving"),
    Case("tipi", {"start": "zero"}),
    Case("tipi", {"answer": "after"}),
    Case("tipi", {"entropy_weight": 1.0}),
    Case("tipi", {"statistics": "source"}),
    Case("tipi", {"statistics": "moving"}),
    Case("tipi", {"statistics": "moving", "answer": "after", "entropy_weight": 1.0}),
    Case("tipi", {"optimizer": "sgd", "lr": 0.05}),
    Case("tipi", {}, "group-norm"),
    Case("tipi", {"statistics": "moving"}, "layer-norm"),
    Case("tent", {"statistics": "source"}),
    Case("tent", {"statistics": "moving"}),
    Case("tent", {"flip": True}),
    Case("tent", {"flip": True, "statistics": "moving"}),
    Case("tent", {"optimizer": "sgd", "lr": 0.05}),
    Case("tent", {}, "group-norm"),
    Case("tent", {}, "layer-norm"),
    Case("tent", {"statistics": "moving"}, "layer-norm"),
    Case("tent", {"statistics": "moving"}, "batch-norm-with-own-forward"),
    ttc(),
    ttc(statistics="source"),
    ttc(statistics="moving"),
    ttc(views="concatenated"),
    ttc(average="probabilities", spc_on="probabilities"),
    ttc(augmentation="gaussian_noise"),
    ttc(optimizer="sgd", lr=0.05),
    ttc(optimizer="sgd", lr=0.05, nesterov=True, weight_decay=0.01),
    ttc(counter_start=0),
    ttc("group-norm"),
    ttc("layer-norm"),
    ttc("layer-norm", statistics="moving"),
    ttc("batch-norm-with-own-forward"),
    ttc("batch-norm-without-running"),
    *(ttc(**{part: False}) for part in ("rla", "spc", "ss", "ga")),
]


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where the methods run; on a GPU with convolutions that repeat themselves bit for bit."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    yield request.param
    torch.backends.cudnn.deterministic = before


@pytest.fixture(scope="module")
def models(device: str) -> Callable[[str], SourceModel]:
    made: dict[str, SourceModel] = {}

    def model_on(network: str) -> SourceModel:
        if network not in made:
            made[network] = make_model(network).to(device)
        return made[network]

    return model_on


def with_model(
    case: Case, models: Callable[[str], SourceModel]
) -> Iterator[tuple[Case, SourceModel]]:
    """After each test the shared model is as before it, to the last bit of every buffer."""
    model = models(case.network)
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    yield case, model
    after = model.module.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert not model.module.training
    assert not any(p.requires_grad or p.grad is not None for p in model.module.parameters())


@pytest.fixture(params=CASES, ids=lambda case: case.id)
def method(request: pytest.FixtureRequest, models: Callable[[str], SourceModel]) -> Iterator[Any]:
    """Each method in each setting, at the source."""
    for case, model in with_model(request.param, models):
        yield create(case.name, model, **case.settings)


@pytest.fixture(params=[case for case in CASES if case.learns], ids=lambda case: case.id)
def learner(request: pytest.FixtureRequest, models: Callable[[str], SourceModel]) -> Iterator[Any]:
    """Each method that takes gradient steps."""
    for case, model in with_model(request.param, models):
        yield create(case.name, model, **case.settings)


def batches(count: int, seed: int = 0) -> list[Tensor]:
    return [make_images(BATCH, seed=100 * seed + number) for number in range(count)]


def walk(method: Method, images: list[Tensor]) -> list[tuple[Tensor, Adaptation]]:
    """Answer and adapt, batch after batch."""
    return [(p.logits, method.adapt(p)) for p in map(method.predict, images)]


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit, whatever mixture of dictionaries, tensors and numbers."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def same_answers(a: Prediction, b: Prediction) -> bool:
    names = ("logits", "probabilities", "entropy", "selected", "version")
    return all(same(getattr(a, name), getattr(b, name)) for name in names)


def moves(method: Method) -> bool:
    """Whether a batch changes anything at all: the statistics of most settings are fixed."""
    return bool(method.adapts - {"moments"}) or method.settings.get("statistics") == "moving"


def without_moments(state: State) -> State:
    return {section: entries for section, entries in state.items() if section != "moments"}


def test_predicting_changes_nothing(method):
    """Asked twice, the answers and the state are the same; so is what the next batch gets."""
    first, second = batches(2)
    method.adapt(method.predict(first))
    before = method.state()
    one, two = method.predict(second), method.predict(second)
    assert same_answers(one, two)
    assert same(method.state(), before)
    assert method.version == one.version


def test_a_prediction_can_be_dropped(method):
    """Whoever predicts without adapting leaves no trace in any later answer."""
    images = batches(4)
    twin = method.fork()
    plain = walk(method, images)
    for (logits, outcome), batch in zip(plain, images, strict=True):
        twin.predict(make_images(3, seed=77))
        prediction = twin.predict(batch)
        twin.predict(batch)
        assert torch.equal(prediction.logits, logits)
        assert twin.adapt(prediction) == outcome
    assert same(twin.state(), method.state())


def test_reset_returns_to_the_source_bit_for_bit(method):
    """Weights, statistics, optimizer, counters: the first answers and all after them come again."""
    images = batches(5)
    source = method.state()
    first = walk(method, images)
    assert same(method.state(), source) != moves(method)
    method.reset()
    assert same(method.state(), source)
    assert method.version == 0
    assert same(walk(method, images), first)


def test_a_restored_state_repeats_itself(method):
    """Taken in mid-accumulation and restored twice, also into another stream, it goes on alike."""
    walk(method, batches(3))
    state = method.state()
    ahead = walk(method, batches(4, seed=1))
    for target in (method, method, method.fork()):
        target.restore(state)
        assert same(target.state(), state)
        assert same(walk(target, batches(4, seed=1)), ahead)


def test_a_state_is_a_copy(method):
    """What was saved stays what it was while the method goes on."""
    walk(method, batches(3))
    state = method.state()
    kept = {
        section: {k: v.clone() if isinstance(v, Tensor) else v for k, v in entries.items()}
        for section, entries in state.items()
    }
    walk(method, batches(3, seed=1))
    assert same(state, kept)


def test_a_state_can_be_written_over(method):
    """What was given out, and what was taken in, is the caller's: neither moves the method."""
    walk(method, batches(3))
    state, again = method.state(), method.state()
    target = method.fork()
    target.restore(again)
    for given in (state, again):
        for entries in given.values():
            for value in entries.values():
                if isinstance(value, Tensor):
                    value.fill_(1)
    ahead = walk(method, batches(2, seed=1))
    assert same(walk(target, batches(2, seed=1)), ahead)
    method.reset()
    assert same(walk(method, batches(2)), walk(method.fork(), batches(2)))


def test_a_state_file_repeats_itself(method, tmp_path: Path):
    """Saved in mid-accumulation and loaded into another stream, the answers go on alike."""
    walk(method, batches(3))
    save_state(tmp_path / "stream.safetensors", method, name="m", model="small")
    ahead = walk(method, batches(4, seed=1))
    other = method.fork()
    load_state(tmp_path / "stream.safetensors", other, name="m", model="small")
    assert same(walk(other, batches(4, seed=1)), ahead)


def test_a_fork_is_at_the_source_and_on_its_own(method):
    """A new stream knows nothing of the first, and neither moves the other."""
    images = batches(4)
    fresh = method.predict(images[0])
    source = method.state()
    walk(method, images)
    fork = method.fork()
    assert fork.settings == method.settings
    assert fork.model is method.model
    assert same(fork.state(), source)
    assert same_answers(fork.predict(images[0]), fresh)
    before = method.state()
    walk(fork, batches(3, seed=1))
    assert same(method.state(), before)


@pytest.mark.parametrize("kind", ["uint8", "float"])
def test_the_given_images_are_not_changed(method, kind):
    """Neither predicting nor adapting writes into the caller's tensor."""
    images = make_images(BATCH) if kind == "uint8" else make_images(BATCH) / 255
    images = images.to(method.model.device)
    before = images.clone()
    method.adapt(method.predict(images))
    assert torch.equal(images, before)


def test_bytes_and_fractions_agree(method):
    """uint8 pixels and the same pixels divided by 255 give the same answers."""
    images = make_images(BATCH)
    assert same_answers(method.predict(images), method.predict(images / 255))


def test_images_may_be_written_over_once_they_are_answered(method):
    """What is learned is of the images that were answered, not of what their memory holds later."""
    images = batches(1)[0] / 255
    kept = method.fork()
    expected = kept.adapt(kept.predict(images.clone()))
    prediction = method.predict(images)
    images.zero_()
    assert method.adapt(prediction) == expected


@pytest.mark.parametrize("kind", ["uint8", "float"])
def test_the_memory_layout_does_not_matter(method, kind):
    """Transposed, channels-last and strided tensors of equal values give equal answers."""
    images = make_images(BATCH) if kind == "uint8" else make_images(BATCH) / 255
    expected = method.predict(images)
    spread = torch.zeros(BATCH, 3, SIZE, 2 * SIZE, dtype=images.dtype)
    spread[..., ::2] = images
    for other in (
        images.to(memory_format=torch.channels_last),
        images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
        images.transpose(2, 3).contiguous().transpose(2, 3),
        spread[..., ::2],
    ):
        assert not other.is_contiguous()
        assert same_answers(method.predict(other), expected)


@pytest.mark.parametrize(
    "images",
    [
        pytest.param(torch.zeros(2, SIZE, SIZE, 3, dtype=torch.uint8), id="channels-last"),
        pytest.param(torch.zeros(3, SIZE, SIZE, dtype=torch.uint8), id="no-batch"),
        pytest.param(torch.zeros(0, 3, SIZE, SIZE, dtype=torch.uint8), id="empty"),
        pytest.param(torch.zeros(2, 3, SIZE, SIZE, dtype=torch.int64), id="int64"),
    ],
)
def test_other_inputs_are_refused_with_a_sentence(method, images):
    """Shape or type that is no batch of images: one sentence, and nothing has happened."""
    before = method.state()
    with pytest.raises(ValueError, match=r"images must be .*; got"):
        method.predict(images)
    assert same(method.state(), before)


def test_one_image_is_enough(method):
    """A stream of single images is answered with numbers, and adapted to."""
    for seed in range(4):
        prediction = method.predict(make_images(1, seed=seed))
        assert prediction.is_finite()
        outcome = method.adapt(prediction)
        assert outcome.skipped in (None, "none_selected")
    assert method.predict(make_images(1)).is_finite()


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.network == "batch-norm"],
    ids=lambda case: case.id,
)
def test_one_image_is_enough_on_a_map_of_one_pixel(case, models):
    """One value a channel: torch itself refuses to take statistics of it, we do not."""
    method = create(case.name, models("batch-norm-on-1x1"), **case.settings)
    walk(method, [make_images(1, seed=seed) for seed in range(3)])
    prediction = method.predict(make_images(1, seed=9))
    assert prediction.is_finite()
    assert len(prediction) == 1


def test_only_what_the_class_says_ever_moves(method):
    """`adapts` is the whole truth about affine parameters, moments and supports."""
    before = method.state()
    walk(method, batches(5))
    after = method.state()
    moved = {part for part in MOVED if not same(before.get(part, {}), after.get(part, {}))}
    expected = set(method.adapts)
    if method.settings.get("statistics") != "moving":
        expected -= {"moments"}
    assert moved == expected
    assert set(before.get("affine", {})) <= set(method.model.affine)


def test_what_moves_is_named_as_in_the_network(learner):
    """`state()["affine"]` can be put into the network itself."""
    walk(learner, batches(4))
    affine = learner.state()["affine"]
    own = dict(learner.model.module.named_parameters())
    assert {name: value.shape for name, value in affine.items()} == {
        name: own[name].shape for name in own if name.startswith("norm")
    }


def test_a_batch_in_which_nothing_is_selected_moves_no_parameter(learner):
    """No step, no gradient kept, no NaN from a mean over nothing; moving statistics excepted."""
    learner.adapt(learner.predict(batches(1)[0]))
    before = learner.state()
    prediction = learner.predict(make_images(BATCH, seed=5))
    prediction = replace(prediction, selected=torch.zeros_like(prediction.selected))
    outcome = learner.adapt(prediction)
    assert outcome.skipped == "none_selected"
    assert (outcome.selected, outcome.stepped, outcome.loss) == (0, False, None)
    after = learner.state()
    assert same(without_moments(after), without_moments(before))
    follows = learner.settings["statistics"] == "moving"
    assert same(after["moments"], before["moments"]) != follows


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=["nan", "inf"])
def test_an_answer_that_is_no_number_teaches_nothing(method, value):
    """One broken pixel: parameters, statistics, optimizer and counters stay, and say why."""
    walk(method, batches(3))
    before = method.state()
    ahead = method.predict(make_images(BATCH, seed=9))
    images = make_images(BATCH) / 255
    images[2, 1, 3, 3] = value
    prediction = method.predict(images)
    assert not prediction.is_finite()
    outcome = method.adapt(prediction)
    assert same(method.state(), before)
    assert not outcome.stepped
    if method.adapts:
        assert outcome.skipped == "non_finite"
    assert same_answers(method.predict(make_images(BATCH, seed=9)), ahead)


@pytest.mark.parametrize("statistics", ["batch", "moving"])
def test_a_loss_that_is_no_number_teaches_nothing(device, statistics):
    """Finite answers whose similarity term overflows: the batch is as if it had not been."""
    network = make_model().module
    with torch.no_grad():
        network.get_submodule("head").weight *= 1e25
    model = SourceModel(network, mean=(0.5,) * 3, std=(0.2,) * 3, size=SIZE).to(device)
    method = create("ttc", model, ga=False, statistics=statistics, sigma=100.0)
    before = method.state()
    prediction = method.predict(make_images(BATCH))
    assert prediction.is_finite()
    assert method.adapt(prediction).skipped == "non_finite"
    assert same(method.state(), before)


@pytest.mark.parametrize("statistics", ["batch", "moving"])
@pytest.mark.parametrize("name", ["tent", "eta", "ttc"])
@pytest.mark.parametrize("factor", [math.nan, math.inf], ids=["nan", "inf"])
def test_a_gradient_that_is_no_number_teaches_nothing(name, statistics, factor, models):
    """Finite answers, but their entropy's gradient overflows: nothing moves, nothing is kept."""
    settings = eta().settings if name == "eta" else {}
    method = create(name, models("batch-norm"), statistics=statistics, **settings)
    walk(method, batches(3))
    before = method.state()
    prediction = method.predict(make_images(BATCH))
    assert prediction.pending.entropy is not None
    pending = replace(prediction.pending, entropy=prediction.pending.entropy * factor)
    assert method.adapt(replace(prediction, pending=pending)).skipped == "non_finite"
    assert same(method.state(), before)


def test_adapting_works_where_gradients_are_switched_off(method):
    """A caller's `no_grad` changes nothing, around predict, adapt or both."""
    images = batches(4)
    twin = method.fork()
    expected = walk(method, images)
    with torch.no_grad():
        assert same(walk(twin, images), expected)
    assert same(twin.state(), method.state())


def test_a_prediction_made_before_a_step_can_still_be_adapted(method):
    """Two batches in flight: the older graph is still whole after the newer one's step."""
    old, new = batches(2)
    method.adapt(method.predict(make_images(BATCH, seed=5)))
    waiting = method.predict(old)
    method.adapt(method.predict(new))
    before = method.state()
    outcome = method.adapt(waiting)
    assert outcome.skipped is None
    assert same(method.state(), before) != moves(method)
    assert method.predict(old).is_finite()


def test_without_learning_only_moving_statistics_move(method):
    """`learn=False` sheds the gradient, not the batch's share in the statistics."""
    walk(method, batches(3))
    before = method.state()
    outcome = method.adapt(method.predict(make_images(BATCH, seed=8)), learn=False)
    after = method.state()
    assert (outcome.loss, outcome.stepped) == (None, False)
    assert same(without_moments(after), without_moments(before))
    follows = method.settings.get("statistics") == "moving"
    assert same(after.get("moments"), before.get("moments")) != follows


def test_answers_are_what_their_names_say(method):
    """Shapes, rows that sum to 1, entropy of these very logits within [0, ln K]."""
    walk(method, batches(3))
    prediction = method.predict(make_images(BATCH, seed=4))
    assert prediction.logits.shape == prediction.probabilities.shape == (BATCH, CLASSES)
    assert prediction.entropy.shape == prediction.selected.shape == (BATCH,)
    assert prediction.selected.dtype == torch.bool
    assert not prediction.logits.requires_grad
    assert len(prediction) == BATCH
    torch.testing.assert_close(prediction.probabilities, prediction.logits.softmax(dim=1))
    sums = prediction.probabilities.sum(dim=1)
    torch.testing.assert_close(sums, torch.ones_like(sums))
    torch.testing.assert_close(prediction.entropy, entropy(prediction.logits))
    assert prediction.entropy.min() >= 0
    assert prediction.entropy.max() <= math.log(CLASSES) + 1e-6
    assert prediction.selected.any() == method.selects


def test_the_answers_on_the_host_equal_the_tensors(method):
    """One transfer loses nothing: numpy arrays of the same values, types and version."""
    walk(method, batches(2))
    prediction = method.predict(make_images(BATCH, seed=4))
    answers = prediction.to_host()
    for name in ("logits", "probabilities", "entropy", "selected"):
        np.testing.assert_array_equal(getattr(answers, name), getattr(prediction, name).cpu())
    assert answers.selected.dtype == np.bool_
    assert answers.version == prediction.version
    np.testing.assert_array_equal(answers.predicted, prediction.logits.argmax(dim=1).cpu())


def test_an_adaptation_says_what_happened(learner):
    """The loss given to backward, its terms, the images it is over, the drift after it."""
    prediction = learner.predict(batches(1)[0])
    outcome = learner.adapt(prediction)
    assert outcome.skipped is None
    assert outcome.selected == int(prediction.selected.sum())
    assert outcome.loss is not None
    assert outcome.entropy is not None
    assert math.isfinite(outcome.loss)
    assert outcome.stepped == (learner.pending_batches == 0)
    walk(learner, batches(3, seed=1))
    last = learner.adapt(learner.predict(batches(1)[0]))
    affine, source = learner.state()["affine"], learner.model.affine
    moved = torch.cat([(affine[name] - source[name]).flatten() for name in source]).norm()
    whole = torch.cat([tensor.flatten() for tensor in source.values()]).norm()
    assert last.drift == pytest.approx(float(moved / whole), rel=1e-5)
    assert last.drift > 0
    assert learner.version == learner.state()["counters"]["steps"] > 0


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_gpu_answers_as_the_cpu_does(case):
    """The same stream on both: logits and moved parameters within float32's rounding."""
    on_cpu = create(case.name, make_model(case.network), **case.settings)
    on_gpu = create(case.name, make_model(case.network).to("cuda"), **case.settings)
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        for (expected, _), (got, _) in zip(
            walk(on_cpu, batches(4)), walk(on_gpu, batches(4)), strict=True
        ):
            torch.testing.assert_close(got.cpu(), expected, atol=2e-2, rtol=1e-3)
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
