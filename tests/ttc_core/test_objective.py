"""The terms of the losses against values computed by hand, at extremes, and their gradients."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ttc_core.objective import entropy, select_confident, similarity_constraint


@pytest.mark.parametrize(
    ("logits", "nats"),
    [
        pytest.param([0.0, 0.0], math.log(2), id="uniform-of-two"),
        pytest.param([7.0] * 10, math.log(10), id="uniform-of-ten"),
        pytest.param([math.log(3), 0.0], 0.5623351446188083, id="three-to-one"),
        pytest.param([math.log(2), math.log(3), math.log(5)], 1.0296530140645737, id="0.2-0.3-0.5"),
        pytest.param([1000.0, 0.0], 0.0, id="certain"),
        pytest.param([-1e30, 1e30, 0.0], 0.0, id="certain-by-far"),
        pytest.param([3e38, -3e38], 0.0, id="further-apart-than-floats-reach"),
        pytest.param([-3e38, -3e38], math.log(2), id="far-below"),
        pytest.param([1e-30, 0.0], math.log(2), id="nearly-equal"),
    ],
)
def test_entropy_matches_the_hand_computed_value(logits, nats):
    """In nats, finite for any finite logits, and independent of a constant added to them."""
    rows = torch.tensor([logits, logits])
    torch.testing.assert_close(entropy(rows), torch.tensor([nats, nats]))


@given(
    rows=st.lists(
        st.lists(st.floats(-1e6, 1e6, width=32), min_size=4, max_size=4), min_size=1, max_size=5
    )
)
def test_entropy_lies_between_0_and_ln_k(rows):
    """Whatever the logits; a row's entropy does not depend on the others."""
    logits = torch.tensor(rows)
    values = entropy(logits)
    assert values.min() >= -1e-6
    assert values.max() <= math.log(4) + 1e-6
    for row, value in zip(logits, values, strict=True):
        torch.testing.assert_close(entropy(row[None])[0], value)


def test_entropy_has_the_gradient_of_its_formula():
    """∂H/∂z_k = −p_k (log p_k + H); numerically too, in double precision."""
    torch.manual_seed(0)
    logits = torch.randn(3, 5, dtype=torch.double, requires_grad=True)
    entropy(logits).sum().backward()
    log_p = logits.detach().log_softmax(dim=1)
    expected = -log_p.exp() * (log_p + entropy(logits).detach()[:, None])
    torch.testing.assert_close(logits.grad, expected)
    assert torch.autograd.gradcheck(entropy, logits)


@pytest.mark.parametrize("logits", [[1000.0, 0.0], [3e38, -3e38], [-1e30, 1e30]], ids=str)
def test_certainty_has_the_gradient_zero(logits):
    """An answer that cannot become more certain pulls nowhere, and never to NaN."""
    row = torch.tensor([logits], requires_grad=True)
    entropy(row).sum().backward()
    torch.testing.assert_close(row.grad, torch.zeros_like(row))


@pytest.mark.parametrize("shape", [(5,), (2, 1), (2, 3, 4)], ids=str)
def test_entropy_refuses_other_shapes(shape):
    """Rows of at least two classes, or a sentence."""
    with pytest.raises(ValueError, match=r"logits must be \(N, K >= 2\); got"):
        entropy(torch.zeros(shape))


@pytest.mark.parametrize(
    ("answers", "others", "features", "other_features", "sigma", "expected"),
    [
        pytest.param([1.0, 2], [1, 2], [0.0], [5], 1.0, 0.0, id="equal-answers"),
        pytest.param([3.0, 0], [0, 4], [1.0, 1], [1, 1], 1.0, 25.0, id="equal-features"),
        pytest.param([3.0, 0], [0, 4], [1.0, 0], [0, 1], 1.0, 25 / math.e, id="kappa-1/e"),
        pytest.param([1.0, 0], [0, 0], [2.0], [0], 2.0, math.exp(-0.5), id="sigma-2"),
        pytest.param([1.0, 0], [0, 0], [1e3], [0], 1.0, 0.0, id="far-features"),
    ],
)
def test_similarity_constraint_matches_the_hand_computed_value(
    answers, others, features, other_features, sigma, expected
):
    """κ·‖z − z'‖² with κ = exp(−‖g − g'‖²/(2σ²)), squared norms summed, not averaged."""
    tensors = [torch.tensor([values]) for values in (answers, others, features, other_features)]
    got = similarity_constraint(*tensors, sigma=sigma)
    torch.testing.assert_close(got, torch.tensor([expected]))


def random_pairs() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(3, k, dtype=torch.double, requires_grad=True) for k in (4, 4, 2, 2)]


def test_similarity_is_symmetric_and_by_image():
    """The views may change places, and an image's value does not depend on the others."""
    z, z2, g, g2 = random_pairs()
    values = similarity_constraint(z, z2, g, g2)
    torch.testing.assert_close(similarity_constraint(z2, z, g2, g), values)
    torch.testing.assert_close(similarity_constraint(z[1:], z2[1:], g[1:], g2[1:]), values[1:])


def test_similarity_has_a_gradient_through_both_views():
    """Nothing is detached: answers and features of both views are pulled, as Eq. 10 says."""
    pairs = random_pairs()
    assert torch.autograd.gradcheck(similarity_constraint, pairs)
    gradients = torch.autograd.grad(similarity_constraint(*pairs).sum(), pairs)
    assert all(gradient.abs().min() > 0 for gradient in gradients)


def test_a_detached_kernel_pulls_the_answers_only():
    """`kappa_detach`: the same value, no gradient on the features, the same on the answers."""
    pairs = random_pairs()
    kept = torch.autograd.grad(similarity_constraint(*pairs).sum(), pairs[:2])
    detached = similarity_constraint(*pairs, kappa_detach=True)
    torch.testing.assert_close(detached, similarity_constraint(*pairs))
    got = torch.autograd.grad(detached.sum(), pairs, allow_unused=True)
    assert got[2] is None
    assert got[3] is None
    torch.testing.assert_close(got[:2], kept)


@pytest.mark.parametrize(
    ("entropies", "selected"),
    [
        pytest.param([0.0, 1.0, 2.0], [True, True, False], id="the-mean-itself-counts"),
        pytest.param([0.1, 0.1, 0.1, 2.0], [True, True, True, False], id="one-far-off"),
        pytest.param([1.5], [True], id="one-image"),
        pytest.param([0.5, 0.5], [True, True], id="equal"),
    ],
)
def test_the_confident_are_those_up_to_the_mean(entropies, selected):
    """H(x) ≤ mean of H over the batch."""
    assert select_confident(torch.tensor(entropies)).tolist() == selected


def test_rounding_can_select_nobody():
    """Why an empty selection must be expected: a mean of equal numbers rounded below them."""
    equal = (torch.full((count,), value) for count in range(2, 60) for value in (0.1, 0.3, 0.7))
    assert any(not select_confident(entropies).any() for entropies in equal)
