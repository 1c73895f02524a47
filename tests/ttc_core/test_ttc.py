"""TTC's own rules: when it steps, what its switches leave, what it learns from."""

from typing import Any

import pytest
import torch

from tests.fixtures.networks import make_images, make_model
from ttc_core.envelope.clauses import Envelope
from ttc_core.methods import Method, create
from ttc_core.methods.parts.augmentation import augment
from ttc_core.objective import entropy

OFF = {"rla": False, "spc": False, "ss": False, "ga": False}


@pytest.fixture(scope="module")
def model():
    return make_model()


def steps_at(method: Method, sizes: list[int]) -> list[int]:
    """The batches, counted from 1, after which the optimizer moved."""
    batches = enumerate((make_images(size, seed=size) for size in sizes), start=1)
    return [n for n, batch in batches if method.adapt(method.predict(batch)).stepped]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        pytest.param([1] * 401, [200, 400], id="N=1-after-200"),
        pytest.param([20] * 21, [10, 20], id="N=20-after-10"),
        pytest.param([80] * 6, [2, 4, 6], id="N=80-halves-down-to-2"),
        pytest.param([100] * 5, [2, 4], id="N=100-after-2"),
        pytest.param([150] * 3, [1, 2, 3], id="N=150-each"),
        pytest.param([500] * 2, [1, 2], id="N=500-each"),
        # 150 + 40/2 < 200; 190 + 40/2 >= 200; then 30 + 160 + 160/2 >= 200.
        pytest.param([110, 40, 40, 30, 160, 1], [3, 5], id="varying"),
        pytest.param([100, 99, 1, 199], [2, 4], id="varying-large-small-large"),
    ],
)
def test_a_step_is_due_about_every_200_images(model, sizes, expected):
    """METHOD §2.5: when images since the last step, plus half a batch, reach 200."""
    assert steps_at(create("ttc", model), sizes) == expected


@pytest.mark.parametrize(
    ("settings", "sizes", "expected"),
    [
        pytest.param({"counter_start": 0}, [100] * 6, [1, 3, 5], id="counter-from-0"),
        pytest.param({"samples_per_step": 300}, [100] * 7, [3, 6], id="samples-per-step"),
        pytest.param({"samples_per_step": 1}, [20] * 3, [1, 2, 3], id="every-batch"),
        pytest.param({"ga": False}, [1] * 3, [1, 2, 3], id="accumulation-off"),
        pytest.param({"ga": False, "counter_start": 0}, [1] * 3, [1, 2, 3], id="off-from-0"),
    ],
)
def test_settings_move_the_step(model, settings, sizes, expected):
    """Counting from 0 steps after the first batch and then every Q; without GA every batch."""
    assert steps_at(create("ttc", model, **settings), sizes) == expected


def test_a_reset_starts_the_count_anew(model):
    """What was pending is dropped, and the next step is a whole accumulation away."""
    method = create("ttc", model)
    assert steps_at(method, [100]) == []
    method.reset()
    assert steps_at(method, [100, 100]) == [2]


def test_a_skipped_batch_does_not_count(model):
    """A batch that taught nothing is not among the 200 images of a step."""
    method = create("ttc", model)
    broken = make_images(100) / 255
    broken[0] = torch.nan
    assert steps_at(method, [100]) == []
    assert not method.adapt(method.predict(broken)).stepped
    assert steps_at(method, [100]) == [1]


@pytest.mark.parametrize(
    "settings",
    [{}, {"optimizer": "sgd", "lr": 0.01}, {"statistics": "moving"}, {"statistics": "source"}],
    ids=str,
)
def test_with_all_four_parts_off_it_is_tent(model, settings):
    """Logits of every batch and the parameters at the end, bit for bit."""
    ttc, tent = create("ttc", model, **OFF, **settings), create("tent", model, **settings)
    for seed in range(5):
        images = make_images(16, seed=seed)
        ours, theirs = ttc.predict(images), tent.predict(images)
        assert torch.equal(ours.logits, theirs.logits)
        assert torch.equal(ours.selected, theirs.selected)
        assert ttc.adapt(ours) == tent.adapt(theirs)
    for name, value in tent.state()["affine"].items():
        assert torch.equal(ttc.state()["affine"][name], value)
        assert not torch.equal(value, model.affine[name])


def first(model: Any, **settings: Any) -> tuple[Any, Any]:
    method = create("ttc", model, **settings)
    prediction = method.predict(make_images(16))
    return prediction, method.adapt(prediction)


def test_the_answer_is_the_average_of_both_views(model):
    """RLA on logits is their mean; on probabilities the log of the mean probabilities."""
    images = make_images(16)
    plain = create("norm", model).predict(images)
    mirrored = create("norm", model).predict(images.flip(3))
    torch.testing.assert_close(first(model)[0].logits, (plain.logits + mirrored.logits) / 2)
    averaged, _ = first(model, average="probabilities")
    mean = (plain.probabilities + mirrored.probabilities) / 2
    torch.testing.assert_close(averaged.probabilities, mean)
    torch.testing.assert_close(averaged.logits, mean.log())
    torch.testing.assert_close(averaged.entropy, -(mean * mean.log()).sum(dim=1))
    assert not torch.allclose(mean, first(model)[0].probabilities, atol=1e-3)


def test_averaged_probabilities_survive_certainty(model):
    """A class whose probability is 0 in both views gives no infinity and no NaN gradient."""
    network = make_model().module
    with torch.no_grad():
        network.get_submodule("head").weight *= 1e4
    certain = type(model)(network, mean=(0.5,) * 3, std=(0.2,) * 3, size=8)
    prediction, outcome = first(certain, average="probabilities", spc=False)
    assert prediction.is_finite()
    assert prediction.entropy.isfinite().all()
    assert outcome.skipped is None


def test_only_images_up_to_the_mean_entropy_are_selected(model):
    """SS compares the averaged answers' entropies with their mean; off, it takes all."""
    prediction, outcome = first(model)
    expected = prediction.entropy <= prediction.entropy.mean()
    assert torch.equal(prediction.selected, expected)
    assert 0 < outcome.selected == int(expected.sum()) < 16
    everything, outcome = first(model, ss=False)
    assert everything.selected.all()
    assert outcome.selected == 16


def test_the_loss_is_the_mean_over_the_selected_of_entropy_and_similarity(model):
    """Both terms are reported, they add up, and `mean_over=batch` divides by N (Eq. 13)."""
    prediction, outcome = first(model)
    assert outcome.entropy == pytest.approx(float(prediction.entropy[prediction.selected].mean()))
    assert outcome.similarity > 0
    assert outcome.loss == pytest.approx(outcome.entropy + outcome.similarity, rel=1e-5)
    _, over_batch = first(model, mean_over="batch")
    assert over_batch.loss == pytest.approx(outcome.loss * outcome.selected / 16, rel=1e-5)
    _, without = first(model, spc=False)
    assert without.similarity is None
    assert without.loss == pytest.approx(outcome.entropy, rel=1e-5)


def test_on_probabilities_the_similarity_term_is_bounded(model):
    """‖p − p'‖² is at most 2, whatever the logits; on logits it is another number."""
    _, on_logits = first(model, ss=False)
    _, on_probabilities = first(model, ss=False, spc_on="probabilities")
    assert 0 < on_probabilities.similarity <= 2
    assert on_probabilities.similarity != pytest.approx(on_logits.similarity)


@pytest.mark.parametrize(("size", "batches"), [(100, 2), (20, 10), (80, 2), (300, 1)])
def test_the_mean_of_the_gradients_divides_by_the_batches_of_a_step(model, size, batches):
    """`accumulate_mean` divides each loss by Q = round(200/N), halves down; else they add up."""
    images = make_images(size)
    losses = [
        method.adapt(method.predict(images)).loss
        for method in (create("ttc", model), create("ttc", model, accumulate_mean=True))
    ]
    assert losses[1] == pytest.approx(losses[0] / batches, rel=1e-5)


def test_an_image_of_a_mean_of_gradients_weighs_as_it_does_in_the_loss(model):
    """A batch of one, divided by two hundred, beside one of a hundred: what it is of the step."""
    within = Envelope.of({"image_in_step": 0.02})
    settings = {"accumulate_mean": True, "ss": False, "samples_per_step": 101, "rla": False}
    method = create("ttc", model, envelope=within, **settings)
    for size in (1, 100):
        method.adapt(method.predict(make_images(size)))
    assert method.version == 1
    assert not method.verdicts.told


def test_gradients_add_up_over_an_accumulation(model):
    """Two batches at unmoved parameters: SGD steps by the sum of their gradients."""
    settings = {"optimizer": "sgd", "lr": 0.01, "momentum": 0.0}
    one, other = make_images(100, seed=1), make_images(100, seed=2)
    moved = {}
    for name, batches in {"one": [one], "other": [other], "both": [one, other]}.items():
        method = create("ttc", model, **settings, samples_per_step=100 * len(batches))
        for batch in batches:
            method.adapt(method.predict(batch))
        assert method.version == 1
        moved[name] = {k: v - model.affine[k] for k, v in method.state()["affine"].items()}
    for name, both in moved["both"].items():
        torch.testing.assert_close(both, moved["one"][name] + moved["other"][name])


@pytest.mark.parametrize("flush", [True, False])
def test_the_end_of_a_stream_steps_only_if_asked(model, flush):
    """`flush_at_end`: what waits is stepped on; by default it goes on waiting."""
    method = create("ttc", model, flush_at_end=flush)
    method.adapt(method.predict(make_images(100)))
    method.end()
    counters = method.state()["counters"]
    assert (counters["steps"], counters["pending_batches"]) == ((1, 0) if flush else (0, 1))
    method.end()
    assert method.version == flush, "an end with nothing pending steps on nothing"


def test_both_views_in_one_pass_share_their_statistics(model):
    """`views=concatenated` is another number than two passes, and as good an answer."""
    separate, concatenated = first(model)[0], first(model, views="concatenated")[0]
    assert not torch.equal(separate.logits, concatenated.logits)
    torch.testing.assert_close(separate.logits, concatenated.logits, atol=1.0, rtol=0.1)


def test_no_gradient_through_the_kernel_moves_other_ways(model):
    """`kappa_detach` leaves answer and loss alone, and changes the step."""
    states, losses = [], []
    for detach in (False, True):
        settings = {"optimizer": "sgd", "lr": 0.01, "ga": False, "kappa_detach": detach}
        method = create("ttc", model, **settings)
        losses.append(method.adapt(method.predict(make_images(16))).loss)
        states.append(method.state()["affine"])
    assert losses[0] == losses[1]
    assert not all(torch.allclose(states[0][k], states[1][k], atol=1e-6) for k in states[0])


@pytest.mark.parametrize(
    "name", ["horizontal_flip", "vertical_flip", "rotation", "resized_crop", "gaussian_noise"]
)
def test_every_augmentation_is_another_picture_of_the_same_kind(name, model):
    """Same shape, still in [0, 1], not the image itself; the seed decides the random ones."""
    unit = make_images(6, size=16) / 255
    view = augment(unit, name, seed=3)
    assert view.shape == unit.shape
    assert view.min() >= 0
    assert view.max() <= 1
    assert not torch.equal(view, unit)
    assert torch.equal(view, augment(unit, name, seed=3))
    drawn = name in ("rotation", "resized_crop", "gaussian_noise")
    assert torch.equal(view, augment(unit, name, seed=4)) != drawn
    prediction, outcome = first(model, augmentation=name)
    assert prediction.is_finite()
    assert outcome.skipped is None


@pytest.mark.parametrize(("name", "axis"), [("horizontal_flip", 3), ("vertical_flip", 2)])
def test_flips_turn_the_right_way(name, axis):
    """Left and right change places, or top and bottom."""
    unit = make_images(2) / 255
    assert torch.equal(augment(unit, name, seed=0), unit.flip(axis))


def test_random_views_are_drawn_anew_for_each_batch(model):
    """The second batch of a stream sees other draws than the first, the reset stream the same."""
    method = create("ttc", model, augmentation="gaussian_noise", samples_per_step=10_000)
    images = make_images(16)
    answers = []
    for _ in range(2):
        prediction = method.predict(images)
        answers.append(prediction.logits)
        method.adapt(prediction)
    assert not torch.equal(*answers)
    method.reset()
    assert torch.equal(method.predict(images).logits, answers[0])


def test_equal_entropies_are_no_accident(model):
    """Copies of one image: whoever is selected, nothing becomes NaN and the answers go on."""
    method = create("ttc", model, samples_per_step=7)
    images = make_images(1).expand(7, -1, -1, -1)
    for _ in range(5):
        outcome = method.adapt(method.predict(images))
        assert outcome.skipped in (None, "none_selected")
    prediction = method.predict(images)
    assert prediction.is_finite()
    torch.testing.assert_close(prediction.entropy, entropy(prediction.logits))
