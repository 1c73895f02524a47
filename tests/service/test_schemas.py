"""Numbers as people are told them."""

import json

import torch

from service.answering import ImageAnswer
from service.replay.utility import continuous
from service.routes.predict import Asked, _prediction
from service.schemas import EstimateStatus, StreamAct, StreamStatus
from service.view import _IF_ANY
from ttc_core.methods import Prediction


def test_nothing_is_shown_as_less_than_zero_by_nothing():
    """Not where a sum is one of zeros, nor where a number is rounded: -0.0 is a riddle to who reads
    it."""
    status = StreamStatus(
        version=0, images=0, batches=0, pending_batches=0, drift=-0.0, details={"doubt": -0.0}
    )
    act = StreamAct(time=1.0, action="hold", reason="harm", evidence={"mean": round(-1e-9, 4)})
    estimate = EstimateStatus(accuracy=-0.0, low=round(-1e-9, 4), high=0.1)
    for each in (status, act, estimate):
        assert "-0" not in each.model_dump_json()

    sure = Prediction.of(torch.tensor([[1000.0, 0.0]])).to_host()
    answer = ImageAnswer(sure, 0, 0.1, None)
    told = b"".join(_prediction(answer, None, Asked("s"), ("a", "b"), str))
    assert "-0" not in told.decode()

    right, kept = torch.ones(2).numpy(), torch.tensor([0.0, 0.5]).numpy()
    assert "-0" not in json.dumps(continuous(right, kept))
    for _, _, shown in _IF_ANY[:4]:
        assert shown(-1e-9).lstrip("+") == "0.0"
