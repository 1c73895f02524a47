"""Frames of a faulty camera are answered, told, and kept out of all that a method learns."""

import pytest
import torch
from torch import Tensor

from tests.fixtures.contract import (
    OWN_METHOD,
    Case,
    same,
    same_answers,
    ttc,
    ttc_stream,
    walk,
)
from tests.fixtures.networks import make_model
from ttc_core.evaluate import warm_up
from ttc_core.guard import MODES, default_mode, divided, mode_of, watched
from ttc_core.methods import create
from ttc_core.methods.contract import Adaptation, Beside, Prediction
from ttc_core.state import load_state, save_state
from ttc_core.state_file import StateError

SIZE = 32
WATCHED = [Case("source"), Case("t3a"), Case(OWN_METHOD), ttc(statistics="moving"), ttc_stream()]


def pictures(count: int, seed: int = 0) -> Tensor:
    """(N, 3, SIZE, SIZE) uint8: smooth, each another, with a little noise."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand((count, 3, 5, 5), generator=draw) * 200 + 20
    smooth = torch.nn.functional.interpolate(coarse, SIZE, mode="bicubic")
    noise = torch.randn(smooth.shape, generator=draw) * 4
    return (smooth + noise).clamp(0, 255).to(torch.uint8)


def faults(count: int, seed: int = 0) -> Tensor:
    """Pictures of noise."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, SIZE, SIZE), generator=draw, dtype=torch.uint8)


def mixed(ordinary: Tensor, suspect: Tensor) -> Tensor:
    """The ordinary, and after each of the first a suspect one."""
    rows = [each for pair in zip(ordinary, suspect, strict=False) for each in pair]
    return torch.stack([*rows, *ordinary[len(suspect) :]])


@pytest.fixture(params=WATCHED, ids=lambda case: case.id)
def make(request):
    """Makes the same method at the source, watched as asked."""
    model = make_model(request.param.network)

    def made(guard: str = "on"):
        return create(request.param.name, model, guard=guard, **request.param.settings)

    return made


def of_the_method(state):
    """Without what watches it."""
    own = ("frames", "guard")
    return {name: each for name, each in state.items() if not name.startswith(own)}


def test_ordinary_images_are_as_if_the_others_were_not_there(make):
    """Answers, outcomes and all that has moved, batch after batch."""
    watched, plain = make(), make("off")
    for number in range(4):
        good = pictures(6, seed=number)
        both = watched.predict(mixed(good, faults(2, seed=number)))
        alone = plain.predict(good)
        rows = [0, 2, 4, 5, 6, 7]
        assert both.suspects == (None, "noise", None, "noise", None, None, None, None)
        for name in ("logits", "probabilities", "entropy", "selected"):
            assert torch.equal(getattr(both, name)[rows], getattr(alone, name))
        assert not both.selected[[1, 3]].any()
        assert watched.adapt(both) == plain.adapt(alone)
    assert same(of_the_method(watched.state()), plain.state())


def test_suspect_images_have_answers_of_their_own(make):
    """By the method as it stands, in their order; a batch of them alone moves nothing."""
    watched = make()
    walk(watched, [pictures(6)])
    before = {key: value for key, value in watched.state().items() if key != "frames"}
    bad = faults(3)
    alone = watched.predict(bad)
    outcome = watched.adapt(alone)
    assert (outcome.skipped, outcome.selected, outcome.stepped) == ("suspect", 0, False)
    assert same({k: v for k, v in watched.state().items() if k != "frames"}, before)
    among = watched.predict(mixed(pictures(4, seed=1), bad))
    torch.testing.assert_close(among.probabilities[[1, 3, 5]], alone.probabilities)
    assert alone.suspects == ("noise",) * 3


def test_without_the_second_view_suspect_images_have_none_either():
    """Among others as alone: time is short for all of them."""
    watched = create("ttc_stream", make_model(), guard="on")
    walk(watched, [pictures(6)])
    bad = faults(3)
    once, twice = (watched.predict(bad, second_view=each).logits for each in (False, True))
    assert not torch.allclose(once, twice)
    among = watched.predict(mixed(pictures(4, seed=1), bad), second_view=False)
    torch.testing.assert_close(among.logits[[1, 3, 5]], once)


def test_what_is_dropped_leaves_no_trace(make):
    """Answers without adapting: the next frame is compared with the last that was taken note of."""
    watched = make()
    images = pictures(4)
    walk(watched, [images])
    before = watched.state()
    assert watched.predict(images[-1:], learn=False).suspects == ("frozen",)
    watched.predict(pictures(2, seed=1))
    assert same(watched.state(), before)
    assert watched.predict(images[-1:]).suspects == ("frozen",)


def test_what_waits_while_another_batch_is_answered_counts(make):
    """Answered one after the other, adapted after: the state is that of the last."""
    watched, other = make(), make()
    first, second = pictures(4), mixed(pictures(3, seed=1), faults(1))
    waiting = [watched.predict(first), watched.predict(second)]
    assert [watched.adapt(each).skipped for each in waiting].count("suspect") == 0
    walk(other, [first, second])
    assert same(watched.state()["frames"], other.state()["frames"])
    assert watched.predict(second[-1:]).suspects == ("frozen",)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_grouping_changes_nothing(size):
    """Which are suspect, however a stream is cut into batches, in floats as in bytes."""
    images = mixed(pictures(5), faults(2))
    images = torch.cat(
        [images, images[-1:], images[-1:], images[5:7], torch.zeros_like(images[:1])]
    )
    expected = [None, "noise", None, "noise", None, None, None, *["frozen"] * 4, "black"]
    for given in (images, images / 255):
        method, found = create("source", make_model(), guard="on"), []
        for each in given.split(size):
            prediction = method.predict(each)
            method.adapt(prediction)
            found += prediction.suspects
        assert found == expected


def test_observed_images_are_learned_from_all_the_same(make):
    """Told, and nothing else: bit for bit the answers of a method that nobody watches."""
    observed, plain = make("observe"), make("off")
    for number in range(3):
        images = mixed(pictures(4, seed=number), faults(2, seed=number))
        one, other = observed.predict(images), plain.predict(images)
        assert same_answers(one, other)
        assert one.suspects == (None, "noise", None, "noise", None, None)
        assert observed.adapt(one) == plain.adapt(other)
    assert same(of_the_method(observed.state()), plain.state())


def test_a_fork_and_a_reset_start_at_the_source(make):
    """No image came before the first."""
    watched = make()
    source = watched.state()
    walk(watched, [pictures(4)])
    assert same(watched.fork().state(), source)
    watched.reset()
    assert same(watched.state(), source)


def test_a_state_file_goes_on_with_the_last_images(make, tmp_path):
    """Also where thresholds have changed, and where nobody watched when it was written."""
    method, path = make(), tmp_path / "stream.safetensors"
    images = pictures(6)
    walk(method, [images])
    save_state(path, method, name="m", model="small")
    again = make()
    load_state(path, again, name="m", model="small")
    assert again.predict(images).suspects == ("frozen",) * 6
    plain = make("off")
    load_state(path, plain, name="m", model="small")
    save_state(path, plain, name="m", model="small")
    other = watched(make("off"), "on", {"frames.black_level": 9})
    load_state(path, other, name="m", model="small")
    assert other.predict(images[-1:]).suspects == (None,)


@pytest.mark.parametrize(
    "last",
    [torch.zeros(3, 33, 32, dtype=torch.uint8), torch.zeros(1, 2, 2, dtype=torch.uint8), "x", 3.0],
)
def test_a_last_image_that_is_none_is_refused(last, tmp_path):
    """A state of a stranger's hand starts nothing."""
    method, path = create("source", make_model(), guard="on"), tmp_path / "s.safetensors"
    frames = {**method.state()["frames"], "last": last}
    save_state(path, method, name="m", model="x", state={"frames": frames})
    with pytest.raises(StateError):
        load_state(path, method, name="m", model="x")


def test_a_prediction_without_numbers_moves_nothing():
    """Neither the method nor what the next frame is compared with."""
    method = create("ttc", make_model(), guard="on")
    images = pictures(4)
    walk(method, [images])
    before = method.state()
    floats = mixed(images, faults(1)).float() / 255
    floats[2] = torch.nan
    assert method.adapt(method.predict(floats)).skipped == "non_finite"
    assert same(method.state(), before)


def test_what_the_source_said_and_how_keeps_its_images():
    """Rows of the shadow and modes of answers are those of the whole batch."""

    class Guarding:
        contextual, model, settings = False, make_model(), {}
        adapts = frozenset()

        def predict(self, images, *, learn=True):
            count = len(images)
            logits = images.float().mean((2, 3))
            held = ("held",) * count if learn else ()
            beside = Beside([1], logits[[1]]) if learn else Beside([0], logits[[0]])
            return Prediction(
                logits=logits,
                probabilities=logits.softmax(1),
                entropy=logits[:, 0],
                selected=torch.ones(count, dtype=torch.bool),
                version=3,
                modes=held,
                beside=beside,
            )

    images = mixed(pictures(3), faults(2))
    found = watched(Guarding(), "on").predict(images)
    assert found.modes == ("held", "adapting", "held", "adapting", "held")
    assert found.selected.tolist() == [True, False, True, False, True]
    assert list(found.beside.rows) == [2]
    assert torch.equal(found.beside.logits[0], found.logits[2])
    assert torch.equal(found.logits, images.float().mean((2, 3)))


def test_a_context_of_another_length_is_refused():
    """Truth values are one for each image, suspect or not."""
    method = create("ttc_stream", make_model(), guard="on")
    with pytest.raises(ValueError, match="3 truth values for 4 images"):
        method.predict(mixed(pictures(3), faults(1)), context=[True] * 3)


def test_the_switch_is_on_with_the_default_alone():
    """Off for what was asked for by name, and for the paper's."""
    assert [default_mode(name) for name in ("ttc_stream", "ttc", "own:Class")] == [
        "on",
        "off",
        "off",
    ]
    assert default_mode("ttc_stream", paper=True) == "off"
    plain = create("source", make_model())
    assert [mode_of(watched(plain, mode)) for mode in MODES] == list(MODES)
    assert watched(plain, "off") is plain
    with pytest.raises(ValueError, match="on, off, observe"):
        watched(plain, "maybe")


def test_thresholds_are_settings_of_frames():
    """By name, as texts; those that were changed are told among the method's."""
    own, rest = divided({"frames.black_level": "9", "ttc.lr": "0.1"})
    assert (own, rest) == ({"frames.black_level": "9"}, {"ttc.lr": "0.1"})
    method = create("norm", make_model(), guard="on", watching=own)
    assert method.settings["frames"] == {"black_level": 9}
    assert "frames" not in create("norm", make_model(), guard="on").settings
    with pytest.raises(ValueError, match=r"frames\.nope is not a setting of frames; its settings"):
        divided({"frames.nope": "1"})
    with pytest.raises(ValueError, match=r"frames\.black_level='300' is not accepted"):
        divided({"frames.black_level": "300"})


def test_images_of_another_shape_are_the_method_s_to_refuse():
    """With its sentence."""
    method = create("source", make_model(), guard="on")
    for wrong in (torch.zeros(3, 32, 32), torch.zeros(2, 1, 32, 32), torch.zeros(0, 3, 32, 32)):
        with pytest.raises(ValueError, match="images must be"):
            method.predict(wrong)


@pytest.mark.parametrize(("side", "images"), [(8, 50), (24, 3), (32, 100), (64, 3), (224, 10)])
def test_warming_up_adapts_too(side, images, monkeypatch):
    """Its images are no faulty camera's: what fails at the first batch fails there."""
    method, adapted = create("source", make_model(), guard="on"), []

    def adapt(inner, prediction, **_):
        adapted.append(len(prediction))
        return Adaptation()

    monkeypatch.setattr(type(method.inner), "adapt", adapt)
    warm_up(method, side, images=images)
    assert adapted == [images]
