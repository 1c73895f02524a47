"""What `ttc doctor` says of installation and model, and `ttc explain` of its checks."""

import re
from pathlib import Path

import pytest

from service.cli import cli
from service.doctor import installation
from service.doctor.asked import Asked
from service.doctor.checks import CHECKS, UnknownCodeError, find_check
from service.doctor.model import look_at_model
from tests.fixtures import centroids
from ttc_core.errors import ModelError
from ttc_core.load import load

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "doctor.md"


def asked(model="bundled", **more):
    return Asked(model, lambda **changed: load(model, **changed), {}, **more)


def own(name):
    return asked(f"tests.fixtures.centroids:{name}")


def found(generator):
    """What was yielded, by code, and what was returned."""
    findings = {}
    while True:
        try:
            finding = next(generator)
        except StopIteration as end:
            return findings, end.value
        findings[finding.code] = finding


# bfloat16


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.5, "is faster than"), (0.97, "is hardly faster than"), (1.3, "is slower than")],
)
def test_whether_another_precision_is_of_use_is_said_in_a_word(monkeypatch, seconds, said):
    monkeypatch.setattr(installation, "seconds", lambda model, _: seconds if model.reduced else 1.0)
    finding = installation.bfloat16(asked())
    assert said in finding.sentence
    assert f"{seconds:.2f} of its time" in finding.sentence


def test_a_model_that_fails_is_not_blamed_on_another_precision(monkeypatch):
    def fails(model, images):
        raise ModelError("The network failed.")

    monkeypatch.setattr(installation, "seconds", fails)
    with pytest.raises(ModelError):
        installation.bfloat16(asked())


def test_a_precision_in_which_a_model_fails_is_of_no_use_and_no_more():
    """All other checks are made."""
    findings, model = found(look_at_model(own("ThroughNumpy")))
    assert model is not None
    assert "of no use here: ModelError: The network failed" in findings["T105"].sentence
    assert {"T206", "T207", "T208"} <= findings.keys()


# The model


def test_too_little_memory_to_learn_is_told():
    """Answering takes less: what can be said of that is said."""
    findings, model = found(look_at_model(own("Cramped")))
    assert model is not None
    assert set(findings["T206"].numbers["seconds"]) == {"1", "8"}
    assert findings["T207"].verdict == "problem"
    assert "memory is too little" in findings["T207"].sentence


def test_a_model_is_described_by_what_it_reads_answers_adapts_and_costs():
    findings, model = found(look_at_model(own("plain")))
    assert model.classes == centroids.CLASSES
    assert findings["T202"].numbers["mean"] == [0, 0, 0]
    assert findings["T203"].verdict == "note"  # the classes have no names
    assert findings["T204"].numbers == {
        "layers": {"BatchNorm": 1}, "adapted": 6, "following": 1,
    }  # fmt: skip
    assert set(findings["T206"].numbers["seconds"]) == {"1", "8", "100"}
    assert findings["T207"].numbers["bytes"] >= 6 * 4
    assert findings["T208"].numbers == {"takes_one": True, "shares": True}
    assert not {each.code for each in findings.values() if each.verdict == "problem"}


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("tests.fixtures.centroids:without_norm", "no BatchNorm, LayerNorm"),
        ("torchvision/resnet18@{}", "resnet18"),
        ("torchvision/resnet18@nowhere.pt", "nowhere.pt"),
        ("resnet", "names no model"),
    ],
    ids=["without-norm-layers", "a-file-of-another-network", "no-file", "no-spec"],
)
def test_a_model_that_does_not_load_is_a_problem_that_says_why(spec, said):
    weights = ROOT / "ttc_core" / "zoo" / "weights.safetensors"
    findings, model = found(look_at_model(asked(spec.format(weights))))
    assert model is None
    assert list(findings) == ["T201"]
    assert findings["T201"].verdict == "problem"
    assert said in findings["T201"].sentence


def test_the_bundled_model_fed_otherwise_says_nothing_of_the_installation():
    """Its accuracy is known as it was trained alone."""
    findings, _ = found(look_at_model(asked()))
    assert findings["T104"].verdict == "ok"
    otherwise = Asked("bundled", lambda **changed: load("bundled", size=16, **changed), {})
    findings, model = found(look_at_model(otherwise))
    assert model is not None
    assert "T104" not in findings


# Codes


def test_every_finding_of_the_code_has_a_check_and_every_check_a_finding():
    sources = "".join(
        path.read_text()
        for path in (ROOT / "service" / "doctor").glob("*.py")
        if path.name != "checks.py"
    )
    assert set(re.findall(r'"(T\d{3})"', sources)) == set(CHECKS)


def test_the_page_has_every_check_as_the_code_has_it():
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| T")]
    assert lines == [
        f"| {check.code} | {check.title} | {check.explanation} |" for check in CHECKS.values()
    ]


def test_a_code_is_found_in_small_letters_too_and_near_ones_are_named():
    assert find_check("t303") is CHECKS["T303"]
    with pytest.raises(UnknownCodeError, match=r"T30\d"):
        find_check("T309")


def test_the_help_has_the_options_of_a_model_that_serve_has():
    """But for what of it is no matter of a model."""
    names = {option for each in cli.commands["doctor"].params for option in each.opts}
    served = {option for each in cli.commands["serve"].params for option in each.opts}
    shared = {"--model", "--size", "--crop", "--interpolation", "--mean", "--std", "--precision"}
    shared |= {"--class-names", "--device", "--threads", "--calibration", "--trust-code"}
    assert shared <= names & served
