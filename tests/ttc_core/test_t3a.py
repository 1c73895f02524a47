"""T3A's supports and prototypes, beyond what the golden vectors and the contract hold."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.fixtures.networks import CLASSES, SIZE, make_images, make_model, make_network
from ttc_core.methods import UnsuitableNetworkError, create
from ttc_core.methods.t3a import Supports
from ttc_core.model import SourceModel


@pytest.fixture(scope="module")
def model():
    return make_model()


def test_the_first_supports_are_the_heads_rows_by_its_own_answer_to_them(model):
    """Filed under argmax of h(w_c) with the bias, L2-normalised, with that answer's entropy."""
    head = model.module.get_submodule(model.split)
    answers = head(head.weight)
    supports = create("t3a", model).state()["supports"]
    assert supports["classes"].tolist() == answers.argmax(dim=1).tolist()
    torch.testing.assert_close(supports["features"], F.normalize(head.weight, dim=1))


def test_an_answer_is_the_feature_times_the_prototypes(model):
    """The feature is not normalised, the prototypes are; the batch's own features count."""
    images = make_images(6)
    logits = create("t3a", model).predict(images).logits
    output = model.run(model.normalize(model.to_unit(images)))
    head = model.module.get_submodule(model.split)
    features = torch.cat([head.weight, output.features])
    classes = torch.cat([head(head.weight), output.logits]).argmax(dim=1)
    for label in range(CLASSES):
        prototype = F.normalize(F.normalize(features[classes == label], dim=1).sum(dim=0), dim=0)
        torch.testing.assert_close(logits[:, label], output.features @ prototype)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_each_class_keeps_its_most_certain_supports(most):
    """In the order they came; equals are settled by who came first."""
    entropies = torch.tensor([0.5, 0.1, 0.3, 0.1, 0.2, 0.9])
    classes = torch.tensor([0, 0, 1, 0, 1, 2])
    features = torch.arange(6.0)[:, None]
    first = Supports(features[:3], entropies[:3], classes[:3])
    rest = Supports(features[3:], entropies[3:], classes[3:])
    kept = first.joined(rest, at_most=most)
    expected = {1: [1, 4, 5], 2: [1, 2, 3, 4, 5], 3: [0, 1, 2, 3, 4, 5]}
    assert kept.features[:, 0].tolist() == expected[most]


def test_all_supports_are_kept_where_that_is_asked_for():
    """−1 drops nothing, unlike its authors' slice, which loses the worst of each class."""
    one = Supports(torch.ones(3, 2), torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0, 0, 0]))
    assert len(one.joined(one, at_most=-1).entropy) == 6


class NoNumberForBlack(nn.Module):
    """A network that fails on black images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        black = x.amax(dim=(1, 2, 3), keepdim=True) <= 0
        return self.network(torch.where(black, torch.nan, x))


def test_an_answer_that_is_no_number_fails_alone():
    """With the source's statistics rows do not touch; nor do they through the prototypes."""
    network = NoNumberForBlack(make_network("batch-norm"))
    model = SourceModel(network, mean=(0.0,) * 3, std=(1.0,) * 3, size=SIZE)
    images = make_images(6)
    images[2] = 0
    method = create("t3a", model)
    prediction = method.predict(images)
    assert prediction.logits.isfinite().all(dim=1).tolist() == [True, True, False, *[True] * 3]
    assert method.adapt(prediction).skipped == "non_finite"


def test_a_class_without_supports_gets_the_zero_prototype():
    """Its logit is 0."""
    one = Supports(torch.eye(2), torch.zeros(2), torch.tensor([0, 2]))
    assert one.prototypes(3)[1].tolist() == [0, 0]


class WithoutWeights(nn.Module):
    """A head that has no rows to begin with."""

    def forward(self, x):
        return x


def test_a_head_without_rows_is_refused_with_a_sentence():
    """T3A begins with the rows of the last layer."""
    network = make_network("batch-norm")
    network.head = nn.Sequential(nn.Linear(12, CLASSES), WithoutWeights())
    model = SourceModel(network, mean=(0.5,) * 3, std=(0.25,) * 3, size=SIZE, split="head")
    with pytest.raises(UnsuitableNetworkError, match=r"t3a needs a linear layer .* head is Sequ"):
        create("t3a", model)
