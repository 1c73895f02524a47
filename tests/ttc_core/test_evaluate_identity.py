"""What makes a row another one: weights, images, device, history; and what a user's code raises."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import Tensor

from service.cli import cli
from tests.fixtures.datasets import small_data
from tests.fixtures.networks import make_model
from ttc_core.envelope.clauses import BUILT_IN, Envelope
from ttc_core.errors import UserError
from ttc_core.evaluate import Run
from ttc_core.evaluation import Evaluation
from ttc_core.methods import Prediction, create
from ttc_core.methods.own import OwnMethod
from ttc_core.report.groups import groups
from ttc_core.report.results import Result
from ttc_core.rows import Rows, setting
from ttc_core.zoo import ARCHITECTURES


def evaluate(*arguments: object, method: str = "source") -> list[dict[str, Any]]:
    common = ("--methods", method, "--limit", "20", "--threads", "1", "--device", "cpu")
    result = CliRunner().invoke(cli, ["evaluate", *map(str, arguments), *common])
    assert result.exit_code == 0, result.output
    path = Path(str(arguments[arguments.index("--json") + 1]))
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_other_weights_of_the_same_name_are_run(tmp_path):
    """Retrained in place: the row of the old weights is not taken for the new ones'."""
    weights, network = tmp_path / "w.safetensors", ARCHITECTURES["resnet20"].build(10)
    asked = ("bundled", "--model", f"cifar/resnet20@{weights}", "--corruptions", "clean")
    for bias, count in ((0.0, 1), (0.0, 1), (1.0, 2)):
        state = network.state_dict()
        next(reversed(state.values()))[0] += bias
        save_file(state, weights)
        rows = evaluate(*asked, "--json", tmp_path / "rows.jsonl")
        assert len(rows) == count
    assert rows[0]["model_digest"] != rows[1]["model_digest"]
    assert (rows[0]["device"], rows[0]["threads"]) == ("cpu", 1)


def test_another_precision_is_run(tmp_path):
    """In float32 a row is as those from before there was any other."""
    asked = ("bundled", "--corruptions", "clean", "--json", tmp_path / "rows.jsonl")
    for precision, count in (("float32", 1), ("bfloat16", 2), ("bfloat16", 2)):
        rows = evaluate(*asked, "--precision", precision)
        assert len(rows) == count
    assert [row["precision"] for row in rows] == ["float32", "bfloat16"]
    assert rows[0]["model_digest"] == rows[1]["model_digest"]
    assert rows[0]["entropy"] != rows[1]["entropy"]
    assert "precision" not in setting(rows[0])


def test_another_envelope_is_run(tmp_path):
    """The built-in one, named or not, is as the rows from before there was any; so is SOURCE."""
    file, rows = tmp_path / "envelope.toml", tmp_path / "rows.jsonl"
    asked = ("bundled", "--served", "--corruptions", "clean", "--json", rows)
    counts = []
    for text in (None, f"drift = {BUILT_IN.drift}", "drift = 0.0", "drift = 0.0"):
        envelope = () if text is None else ("--envelope", file)
        file.write_text(text or "")
        counts.append(len(evaluate(*asked, *envelope, method="source,tent")))
    assert counts == [2, 2, 3, 3]
    first, narrow = (json.loads(line) for line in rows.read_text().splitlines()[1:])
    assert "envelope" not in setting(first)
    assert (narrow["method"], narrow["envelope_verdicts"]) == ("tent", {"cut": {"drift": 1}})
    assert narrow["envelope"] == Envelope.of({"drift": 0.0}).digest


def test_a_network_in_a_precision_of_its_own_is_as_it_was_told_before():
    """Its rows said float32, or nothing; `--precision` is another setting, as before."""
    own = {"model": "m", "precision": "bfloat16", "weights_precision": "bfloat16"}
    asked = {**own, "weights_precision": "float32"}
    assert (
        setting(own) == setting({"model": "m", "precision": "float32"}) == setting({"model": "m"})
    )
    assert setting(asked) == setting({"model": "m", "precision": "bfloat16"}) != setting(own)


def test_other_images_under_the_same_name_are_run(tmp_path):
    """The folder's content changed, its name did not."""
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "labels.npy", np.arange(20) % 10)
    for change, count in ((0, 1), (0, 1), (1, 2)):
        np.save(tmp_path / "fog.npy", images ^ change)
        rows = evaluate(
            *(f"cifar10c:{tmp_path}", "--corruptions", "fog", "--json", tmp_path / "rows.jsonl")
        )
        assert len(rows) == count


OWN_METHOD = """
from ttc_core.methods.source import Source
from own_base import Base
class Mine(Base, Source):
    pass
"""
OWN_NETWORK = """
from ttc_core.load import load
def build():
    from own_base import changed
    return changed(load("bundled").module)
"""
OWN_BASE = """
class Base:
    def predict(self, images, *, learn=True):
        return super().predict(255 - images if {0} else images, learn=learn)
def changed(network):
    network.register_forward_pre_hook(lambda layer, inputs: (-inputs[0],) if {0} else inputs)
    return network
"""


@pytest.mark.parametrize(
    "asked",
    [{"method": "own_method:Mine"}, {"model": "own_network:build"}],
    ids=["method", "model"],
)
def test_other_code_of_the_same_name_is_run(asked, tmp_path, monkeypatch):
    """Edited in place, or in a module that it is made of; what nothing imports does not matter."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name, text in (("method", OWN_METHOD), ("network", OWN_NETWORK)):
        (tmp_path / f"own_{name}.py").write_text(text)
    model = ("--model", asked.get("model", "bundled"))
    for change, count in ((0, 1), (0, 1), (1, 2), (0, 2)):
        (tmp_path / "own_base.py").write_text(OWN_BASE.format(change))
        (tmp_path / "notes.py").write_text(f"# {change}")
        for name in ("own_method", "own_network", "own_base"):
            sys.modules.pop(name, None)
        rows = evaluate(
            *("bundled", "--corruptions", "clean", *model, "--json", tmp_path / "rows.jsonl"),
            method=asked.get("method", "source"),
        )
        assert len(rows) == count
    assert rows[0]["accuracy"] != rows[1]["accuracy"]
    found = groups([Result(row) for row in rows])
    assert sum(len(group.lines) for group in found) == 2
    if "method" in asked:
        assert len(found) == 1


IMAGES = 10


class Odd:
    """A method of a user's own that fails where it is told to."""

    def __init__(self, where: str, error: BaseException) -> None:
        self._inner, self._where, self._error = create("source", make_model()), where, error

    def __getattr__(self, name: str) -> Any:
        if name == self._where:
            return self._fail
        return getattr(self._inner, name)

    def _fail(self, *_: Any, **__: Any) -> NoReturn:
        raise self._error


def run(inner: Any) -> list[dict[str, Any]]:
    method = OwnMethod("my.own:Method", make_model(), inner)
    return Evaluation(
        runs=[Run("my.own:Method", method, 8)],
        data=small_data(IMAGES),
        corruptions=("clean",),
        severity=5,
        limit=None,
        order="file",
        protocol="episodic",
        seed=0,
        fields={"model": "small"},
    ).run(Rows(None))


@pytest.mark.parametrize("where", ["reset", "fork", "predict", "adapt"])
@pytest.mark.parametrize(
    "error",
    [RuntimeError("odd"), SystemExit("odd"), KeyError("odd"), ZeroDivisionError("odd" * 9999)],
    ids=lambda error: type(error).__name__,
)
def test_what_a_method_of_ones_own_raises_ends_in_a_sentence(where, error):
    """Wherever and whatever it raises; a short one."""
    with pytest.raises(UserError, match=r"my\.own:Method with small failed .*odd") as failed:
        run(Odd(where, error))
    assert len(str(failed.value)) < 700


class Saying:
    """A method of a user's own whose answers are what a function makes of SOURCE's."""

    def __init__(self, change: Callable[[Prediction], Any]) -> None:
        self._inner, self._change = create("source", make_model()), change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def predict(self, images: Tensor) -> Any:
        return self._change(self._inner.predict(images))

    def fork(self) -> "Saying":
        return Saying(self._change)


def said(**changed: Callable[[Tensor], Any]) -> Callable[[Prediction], Prediction]:
    return lambda p: replace(p, **{name: to(getattr(p, name)) for name, to in changed.items()})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (said(logits=lambda t: t * torch.nan), "scores for image 1 are not finite"),
        (said(entropy=lambda t: t.where(t > t.min(), torch.inf)), "scores for image . are not"),
        (said(logits=lambda t: t[:1]), r"logits \(1, 5\) in place of \(8, 5\)"),
        (said(logits=lambda t: t.repeat(1, 2)), r"logits \(8, 10\) in place of \(8, 5\)"),
        (said(logits=lambda t: t.argmax(1)), r"logits \(8,\) in place of \(8, 5\)"),
        (said(logits=lambda t: t.long()), "logits of type torch.int64"),
        (said(logits=lambda t: t.numpy()), "logits ndarray in place of"),
        (said(probabilities=lambda t: 2 * t), "probabilities .* whose sum is not 1"),
        (said(probabilities=lambda t: t - 0.2), "probabilities that are below 0"),
        (said(entropy=lambda t: -t), "an entropy outside of 0 to ln 5"),
        (said(version=lambda _: "7"), "a version that is str"),
        (lambda p: p.logits, "Tensor, not a Prediction"),
        (lambda _: None, "NoneType, not a Prediction"),
    ],
)
def test_what_is_no_answer_makes_no_row(change, sentence):
    """NaN is no class 0, and one row no answer to eight images."""
    with pytest.raises(UserError, match=f"my.own:Method with small failed .*{sentence}"):
        run(Saying(change))


def test_ctrl_c_in_a_method_of_ones_own_is_ctrl_c():
    """It is the user's, not the method's."""
    with pytest.raises(KeyboardInterrupt):
        run(Odd("predict", KeyboardInterrupt()))
