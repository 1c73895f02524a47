"""Where images begin to look other, what earned the prior its weight may be over."""

import numpy as np
import pytest
import torch

from tests.fixtures.contract import same
from tests.fixtures.networks import make_images, make_model
from ttc_core.methods import create
from ttc_core.methods.parts.prior import TemporalPrior
from ttc_core.methods.parts.scene import LEAST_IMAGES, Scene, Scenes

NUMBERS = 16


def scene() -> Scene:
    return Scene(np.zeros(NUMBERS), np.full(NUMBERS, 0.25))


def cuts(looks: np.ndarray) -> list[int]:
    """The places of those that are cuts."""
    now, found = scene(), []
    for place, look in enumerate(looks):
        now, is_cut = now.after(look)
        found += [place] if is_cut else []
    return found


def looks(count: int, *, away: float = 0.0, seed: int = 0) -> np.ndarray:
    """(N, D) of some kind of images, so many deviations away, whose numbers go together."""
    draw = np.random.default_rng(seed)
    common = draw.normal(0, 0.5, (count, 4)).repeat(NUMBERS // 4, axis=1)
    return away * 0.5 + common


def test_images_of_one_kind_have_hardly_a_cut():
    """Whatever the spread: it is the stream's own that they are held against."""
    for scale in (0.2, 1, 5):
        assert len(cuts(scale * looks(2000))) <= 30


@pytest.mark.parametrize("at_once", [5, 12, 40])
def test_two_kinds_by_turns_are_told_apart_each_time(at_once):
    """Long after the start, too: what is followed is not a mixture from which neither is far."""
    parts, ends, place = [looks(200)], [], 200
    for turn in range(60):
        parts += [looks(at_once, away=6, seed=turn), looks(20, seed=100 + turn)]
        ends += [place, place + at_once]
        place += at_once + 20
    found = cuts(np.concatenate(parts))
    assert len(set(ends) & set(found)) >= 0.95 * len(ends)


def test_a_new_kind_that_stays_is_cut_once():
    """Light that goes on is no news after the first image."""
    found = cuts(np.concatenate([looks(200), looks(200, away=6, seed=1)]))
    assert 200 in found
    assert len(found) <= 8


def test_the_first_images_are_no_cuts():
    """How far a stream's images are from each other is not known yet."""
    assert not cuts(np.concatenate([looks(LEAST_IMAGES - 2), looks(1, away=50)]))


def certain(classes: list[int]) -> torch.Tensor:
    """(N, 10) logits of a network that is 90 % sure of each."""
    return np.log(0.9 * 9 / 0.1) * torch.eye(10)[torch.tensor(classes)].double()


def test_odd_pictures_answered_alike_do_not_answer_for_the_streams_own():
    """Twelve again and again earn the prior weight; with a cut it is not used up on others."""
    own = np.random.default_rng(0).permutation(np.arange(200) % 10).tolist()
    classes, is_cut = list[int](), list[bool]()
    for start in range(0, 200, 20):
        classes += [8] * 12 + own[start : start + 20]
        is_cut += [True] + [False] * 11 + [True] + [False] * 19
    logits, labels = certain(classes) / 2, torch.tensor(classes)
    seen, unseen = (
        TemporalPrior(10).answers(logits, None, given)[0].argmax(1) == labels
        for given in (is_cut, None)
    )
    mine = torch.tensor([number % 32 >= 12 for number in range(len(classes))])
    assert seen[mine].double().mean() > unseen[mine].double().mean() + 0.05
    assert seen[mine].double().mean() > 0.98


def test_it_does_not_matter_how_images_are_grouped_and_a_stream_goes_on():
    """Images that stand alone are nothing to it; a state from before cuts is taken up."""
    model = make_model("batch-norm")
    whole, parts = (create("ttc_stream", model, learn="never") for _ in range(2))
    images = torch.cat((make_images(20), 255 - make_images(4, seed=1) // 8))
    alone = [number % 5 != 0 for number in range(24)]
    whole.adapt(whole.predict(images, context=alone))
    for number in range(24):
        parts.adapt(parts.predict(images[number, None], context=[alone[number]]))
    assert whole.state()["scene"]["images"] + whole.state()["scene"]["latest"] > LEAST_IMAGES
    np.testing.assert_allclose(
        whole.state()["scene"]["mean"], parts.state()["scene"]["mean"], atol=1e-4
    )
    state = whole.state()
    again = create("ttc_stream", model, learn="never")
    again.restore(state)
    assert same(again.state(), state)
    again.restore({name: each for name, each in state.items() if name != "scene"})
    assert same(again.state()["scene"], Scenes(model).state()["scene"])
    for name, odd in {"mean": "none", "variance": -1.0, "latest": 99, "images": -1}.items():
        value = odd * torch.ones(len(state["scene"]["mean"])) if name == "variance" else odd
        with pytest.raises(ValueError, match=r"^(its scene|one of its numbers)"):
            again.restore({**state, "scene": {**state["scene"], name: value}})


def test_networks_without_batch_norm_have_no_cuts():
    """Nothing tells how their images look."""
    model = make_model("group-norm")
    method = create("ttc_stream", model)
    method.adapt(method.predict(make_images(20)))
    assert method.state()["scene"]["images"] == 0
