"""What the tests of the science half share."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tests.fixtures.contract import CASES, Case
from tests.fixtures.networks import make_model
from ttc_core.methods import create
from ttc_core.model import SourceModel


@pytest.fixture(autouse=True)
def seed() -> None:
    """Random tensors are the same in every run and in any order of the tests."""
    torch.manual_seed(0)


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
