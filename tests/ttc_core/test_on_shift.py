"""`on_shift`: a method learns while its stream differs from what it last learned, else looks."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.fixtures.contract import OWN_METHOD, same
from tests.fixtures.networks import make_images, make_model
from ttc_core.evaluate import run_stream
from ttc_core.guard import on_shift
from ttc_core.guard.on_shift import LOOK, OnShift, look_of
from ttc_core.methods import METHODS, Method, create
from ttc_core.state import load_state, save_state

WINDOW, BATCH = 24, 6
LEARNING = {
    "ttc_stream": {"learn": "always", "entropy_fraction": 1.0, "samples_per_step": BATCH},
    "ttc": {"samples_per_step": BATCH, "statistics": "moving"},
    "tent": {"statistics": "moving"},
    "tipi": {"statistics": "moving"},
    "eta": {"entropy_fraction": 1.0, "redundancy_margin": 1.01},
    "t3a": {},
    OWN_METHOD: {},
}


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window of few batches."""
    monkeypatch.setattr(on_shift, "WINDOW", WINDOW)


def make(name: str = "tent", **more: object) -> Method:
    settings = {**LEARNING[name], "on_shift": True, **more}
    return create(name, make_model("batch-norm"), **settings)


def batches(count: int, seed: int = 0) -> list[Tensor]:
    return [make_images(BATCH, seed=1000 * seed + number) for number in range(count)]


def dark(images: Tensor) -> Tensor:
    """The same pictures, with a lamp gone."""
    return images // 3


def outcomes(method: Method, images: list[Tensor]) -> list[str | None]:
    return [method.adapt(method.predict(batch)).skipped for batch in images]


@pytest.mark.parametrize("name", LEARNING)
def test_a_stream_that_stays_is_learned_from_at_its_start_and_again_when_it_changes(name):
    """As many images each time, whatever the method, and on to its step; in between nothing is."""
    method, per_window = make(name), WINDOW // BATCH
    found = outcomes(method, batches(30))
    assert found == [None] * per_window + ["settled"] * (30 - per_window)
    found = outcomes(method, [dark(each) for each in batches(30, seed=1)])
    changed = found.index(None)
    assert changed < 10
    learned = found.count(None)
    assert found[changed:] == [None] * learned + ["settled"] * (30 - learned - changed)
    # The default counts to its step what it has chosen.
    assert learned == per_window or (name == "ttc_stream" and per_window < learned < 2 * per_window)
    assert method.pending_batches == 0


@pytest.mark.parametrize("guard", ["on", "off"])
def test_it_is_settled_once_a_step_has_taken_in_what_was_learned(guard, monkeypatch):
    """A method may step less often, as TTC does by default; nothing then waits for what comes."""
    monkeypatch.undo()
    model = make_model("batch-norm")
    method = create("ttc", model, statistics="moving", on_shift=True, guard=guard)
    images = [make_images(50, seed=number) for number in range(6)]
    assert outcomes(method, images) == [None] * 4 + ["settled"] * 2
    assert (method.version, method.pending_batches) == (1, 0)


def test_one_that_takes_no_step_is_settled_all_the_same():
    """After ten times as many images."""
    method = make("ttc", samples_per_step=10**6)
    most = 10 * WINDOW // BATCH
    assert outcomes(method, batches(most + 2)) == [None] * most + ["settled"] * 2


def test_what_is_settled_answers_as_one_that_may_not_learn():
    """And keeps following: only learning is left out, to the last bit."""
    method, plain = make("ttc_stream", guard="on"), make("ttc_stream", guard="on", on_shift=False)
    for number, batch in enumerate(batches(12)):
        learn = number < WINDOW // BATCH
        answered, wanted = method.predict(batch), plain.predict(batch, learn=learn)
        assert torch.equal(answered.probabilities, wanted.probabilities)
        assert answered.modes == ("adapting" if learn else "settled",) * BATCH
        assert bool(answered.selected.any()) == learn
        method.adapt(answered)
        plain.adapt(wanted, learn=learn)
    after, expected = method.state(), plain.state()
    assert all(same(after[section], expected[section]) for section in expected)
    assert method.mode == "settled"


def test_no_graph_is_kept_once_it_is_settled():
    """A backward pass needs one: none is taken, and a pass costs what answering costs."""
    method = make("tent")
    outcomes(method, batches(4))
    prediction = method.predict(batches(1, seed=2)[0])
    assert prediction.pending.inner.pending.parameters is None
    version = method.version
    outcomes(method, batches(5, seed=3))
    assert method.version == version == 4


def test_images_that_nothing_is_learned_from_use_up_nothing():
    """Shed, or of classes that teach nothing: what was to be learned is learned later."""
    method = make("tent")
    for batch in batches(20):
        assert method.adapt(method.predict(batch, learn=False), learn=False).skipped == "shed"
    assert outcomes(method, batches(6)) == [None] * 4 + ["settled"] * 2


def test_what_is_skipped_for_lack_of_time_is_told_as_that():
    method = make("tent")
    outcomes(method, batches(4))
    prediction = method.predict(batches(1, seed=2)[0], learn=False)
    assert method.adapt(prediction, learn=False).skipped == "shed"


def test_less_sure_answers_are_a_change_too():
    """Pictures that look alike and puzzle the network: turned on their side, say."""
    method = make("tent")
    outcomes(method, batches(8))
    seen = method._learned
    numbers = torch.from_numpy(seen.since_settled.copy()).expand(200, -1).numpy().copy()
    assert seen.after(numbers, learned=False).settled
    numbers[:, LOOK] += 3 * (seen.variance[LOOK] + on_shift.LEAST_VARIANCE) ** 0.5
    assert not seen.after(numbers, learned=False).settled
    numbers[:, LOOK] -= 6 * (seen.variance[LOOK] + on_shift.LEAST_VARIANCE) ** 0.5
    assert seen.after(numbers, learned=False).settled  # surer ones are none


def test_the_batches_in_which_images_came_do_not_matter():
    """Mean and spread of what was learned are the same however it was cut."""
    numbers = torch.rand(WINDOW, on_shift.NUMBERS, dtype=torch.float64).numpy()
    whole = on_shift.Learned().after(numbers, learned=True)
    cut = on_shift.Learned()
    for each in (numbers[:1], numbers[1:8], numbers[8:]):
        cut = cut.after(each, learned=True)
    for name in ("mean", "variance"):
        torch.testing.assert_close(
            torch.from_numpy(getattr(cut, name)), torch.from_numpy(getattr(whole, name))
        )
    assert cut.settled
    assert whole.settled


@pytest.mark.parametrize("side", [1, 2, 3, 32])
def test_a_look_is_each_pictures_own(side):
    """Of any size, whatever stands beside it; and of the light, the contrast and the grain."""
    images = torch.rand(5, 3, side, side)
    looks = look_of(images)
    assert looks.shape == (5, LOOK)
    assert looks.isfinite().all()
    for row in range(5):
        torch.testing.assert_close(look_of(images[row : row + 1])[0], looks[row])
    if side == 32:
        for changed in (images * 0.7, images / 2 + 0.25, blurred(images)):
            assert not torch.allclose(look_of(changed), looks, atol=0.05)


def blurred(images: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(images, 3, 1, 1)


def test_a_reset_learns_anew():
    method = make("ttc_stream", guard="on")
    outcomes(method, batches(6))
    assert method.mode == "settled"
    method.reset()
    assert method.mode == "adapting"
    assert outcomes(method, batches(1)) == [None]


def test_a_method_that_only_follows_is_left_alone():
    """There is nothing to be left out of."""
    model = make_model("batch-norm")
    for name in ("source", "norm"):
        assert not isinstance(create(name, model, on_shift=True), OnShift)


# Saved states


@pytest.mark.parametrize("guard", ["on", "off"])
@pytest.mark.parametrize("name", ["tent", "ttc_stream", OWN_METHOD])
def test_a_saved_stream_fits_with_and_without(name, guard, tmp_path: Path):
    """It goes on settled where it was; whoever always learns takes it up, and gives it back."""
    method, path = make(name, guard=guard), tmp_path / "stream.safetensors"
    outcomes(method, batches(6))
    save_state(path, method, name="m", model="small")
    twin = method.fork()
    load_state(path, twin, name="m", model="small")
    assert same(twin.state(), method.state())
    assert outcomes(twin, batches(2, seed=2)) == ["settled"] * 2
    always = make(name, guard=guard, on_shift=False)
    load_state(path, always, name="m", model="small")
    (images,) = batches(1)
    asked = always.predict(images, learn=False), method.predict(images, learn=False)
    assert torch.equal(asked[0].probabilities, asked[1].probabilities)
    assert outcomes(always, batches(1, seed=3)) == [None]
    save_state(path, always, name="m", model="small")
    load_state(path, twin, name="m", model="small")
    assert outcomes(twin, batches(1, seed=4)) == [None]  # nobody knows what was learned last


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("mean", torch.zeros(3)),
        ("mean", torch.full((on_shift.NUMBERS,), float("nan"))),
        ("variance", torch.full((on_shift.NUMBERS,), -1.0)),
        ("latest", 5),
        ("settled", 7),
        ("images", -1),
    ],
)
def test_what_cannot_have_been_learned_is_refused(entry, value):
    """The method is as it was."""
    method = make("tent")
    outcomes(method, batches(6))
    before = method.state()
    broken = {**before, "on_shift": {**before["on_shift"], entry: value}}
    with pytest.raises(ValueError, match=r"what it last learned|one of its numbers"):
        method.restore(broken)
    assert same(method.state(), before)


# What it is for


def test_most_of_what_learning_costs_is_saved(model_of_stream):
    """Counted in images, on a stream that changes once: at most twice a window, and a batch."""
    method, stream = model_of_stream
    tally = run_stream(method, stream, BATCH)
    assert tally.learned <= 2 * (WINDOW + BATCH)
    assert tally.images == len(stream)


@pytest.fixture
def model_of_stream():
    """A method, and 240 bundled images that fall dark half way."""
    from ttc_core.datasets import Geometry, changing, open_data
    from ttc_core.load import load

    model = load("bundled", device="cpu")
    data = open_data("bundled", Geometry(32))
    stream = changing(data, ["contrast"], 5, 120, limit=240)
    return create("tent", model, statistics="moving", on_shift=True), stream


def test_every_method_that_learns_is_tried_here():
    assert {*METHODS, OWN_METHOD} - {*LEARNING} == {"source", "norm"}
