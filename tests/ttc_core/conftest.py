"""What the tests of the science half share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def seed() -> None:
    """Random tensors are the same in every run and in any order of the tests."""
    torch.manual_seed(0)
