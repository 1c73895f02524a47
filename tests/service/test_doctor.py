"""What `ttc doctor` says of what it measured."""

import pytest
import torch

from service import doctor
from ttc_core.errors import ModelError
from ttc_core.load import load


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.5, "is faster than"), (0.97, "is hardly faster than"), (1.3, "is slower than")],
)
def test_whether_another_precision_is_of_use_is_said_in_a_word(monkeypatch, seconds, said):
    monkeypatch.setattr(doctor, "_seconds", lambda model: seconds if model.reduced else 1.0)
    found = doctor._bfloat16(load("bundled"), torch.device("cpu"))
    assert said in found.sentence
    assert f"{seconds:.2f} of its time" in found.sentence


def test_a_model_that_fails_is_not_blamed_on_another_precision(monkeypatch):
    def fails(model):
        raise ModelError("The network failed.")

    monkeypatch.setattr(doctor, "_seconds", fails)
    with pytest.raises(ModelError):
        doctor._bfloat16(load("bundled"), torch.device("cpu"))
