"""What `ttc doctor --data` finds, and what it recommends."""

import dataclasses
import shlex
import types

import numpy as np
import pytest

from service.client import Client
from service.doctor import data
from service.doctor.asked import Asked
from service.doctor.data import look_at_data
from service.doctor.examination import examine
from service.doctor.recommendation import chosen
from service.doctor.trial import Tried
from service.launch import launch
from tests.fixtures import centroids
from ttc_core.load import load

STREAMS = ("gaussian_noise", "defocus_blur", "fog", "natural order")


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    return centroids.write_folder(tmp_path_factory.mktemp("colours"))


def asked(name, folder, **more):
    spec = name if ":" in name else f"tests.fixtures.centroids:{name}"
    return Asked(spec, lambda **changed: load(spec, **changed), {}, data=f"folder:{folder}", **more)


def look(name, folder, **more):
    """What was found, by code, and what the later checks go by."""
    wanted = asked(name, folder, **more)
    generator, findings = look_at_data(wanted, wanted.load()), {}
    while True:
        try:
            finding = next(generator)
        except StopIteration as end:
            return findings, end.value
        findings[finding.code] = finding


def test_a_model_that_is_fed_as_it_was_made_is_found_well(colours):
    findings, seen = look("plain", colours)
    assert {each.verdict for each in findings.values()} <= {"ok", "note"}
    assert findings["T302"].numbers["accuracy"] > 0.95
    assert seen.changed == {}
    assert not seen.unsolved
    assert not seen.mirrored_differ
    assert findings["T303"].numbers["found"] is None
    assert "sorted by class" in findings["T301"].sentence


@pytest.mark.parametrize(
    ("network", "named", "std"),
    [("half", "mean 0.5, deviation 0.5", "0.5"), ("byte", "values of 0 to 255", "0.00392157")],
)
def test_a_wrong_normalisation_is_told_and_the_right_one_named(colours, network, named, std):
    """The checks after it go by the right one."""
    findings, seen = look(network, colours)
    assert findings["T303"].verdict == "problem"
    assert findings["T303"].numbers["found"] == named
    assert f"{named} fits" in findings["T303"].sentence
    assert seen.changed["--std"] == ",".join([std] * 3)
    assert findings["T302"].numbers["accuracy"] > 0.95
    assert not seen.unsolved


def test_channels_as_bgr_are_told_and_that_no_option_says_so(colours):
    findings, seen = look("byte_bgr", colours)
    assert findings["T303"].numbers["found"] == "values of 0 to 255, channels as BGR"
    assert "x.flip(1)" in findings["T303"].sentence
    assert "T303" in seen.unsolved
    assert seen.changed == {}


def test_what_a_factory_states_wrongly_is_to_be_mended_there(colours):
    """No option says otherwise, so that the checks go on by what is stated."""
    findings, seen = look("states_its_input", colours)
    assert findings["T301"].verdict != "problem"
    assert findings["T303"].numbers["found"] == "mean 0.5, deviation 0.5"
    assert "SourceModel(…, mean=(0.5,0.5,0.5), std=(0.5,0.5,0.5))" in findings["T303"].sentence
    assert "T303" in seen.unsolved
    assert seen.changed == {}


def test_the_order_of_tens_of_thousands_of_classes_is_looked_at_too():
    """Those that occur are compared, not each with each."""
    labels = np.repeat([7, 150_000], 20)
    model = types.SimpleNamespace(classes=200_000, class_names=[str(n) for n in range(200_000)])
    finding = data._order_of_classes(model, labels[::-1], labels)
    assert "7 means 150000, 150000 means 7" in finding.sentence
    assert data._order_of_classes(model, labels, labels).verdict == "ok"


def test_classes_in_another_order_than_in_training_are_told(colours):
    findings, seen = look("reordered", colours)
    assert findings["T304"].verdict == "problem"
    assert findings["T304"].numbers["assigned"] > 0.95
    assert findings["T303"].verdict == "note"  # what is right by chance alone says nothing of it
    assert "T304" in seen.unsolved


def test_what_no_option_mends_has_to_be_mended_before_methods_are_tried(colours):
    *_, last = examine(asked("reordered", colours, images=120))
    assert (last.code, last.verdict) == ("T402", "note")
    assert "mend T302, T304 first" in last.sentence
    assert last.numbers["command"].startswith(
        "ttc serve --model tests.fixtures.centroids:reordered"
    )


def test_of_normalisations_that_are_as_often_right_the_surest_is_named():
    """But for BGR, where the usual order is as right: of grey images it says nothing."""
    right, plain = np.ones(50), data.USUAL[0]
    bgr = dataclasses.replace(plain, bgr=True)
    answers = np.zeros(50, np.int64)
    fits = {
        plain: data.Fit(answers, right, -0.5),
        data.USUAL[1]: data.Fit(answers, right, -0.3),
        data.USUAL[2]: data.Fit(answers, 0 * right, -0.1),
        bgr: data.Fit(answers, right, -0.2),
    }
    assert data._surest(plain, fits) == data.USUAL[1]


def test_a_model_that_guesses_is_told_and_its_normalisation_left_open(tmp_path):
    """Each class has images of ten colours."""
    folder = centroids.write_folder(tmp_path / "colours")
    for path in list(folder.glob("*/*.png")):
        label, number = int(path.parent.name), int(path.stem)
        path.rename(folder / f"{(label + number) % centroids.CLASSES}" / f"{label}-{number}.png")
    findings, seen = look("plain", folder)
    assert findings["T302"].verdict == "problem"
    assert findings["T303"].verdict == "note"
    assert "T302" in seen.unsolved


def test_mirror_images_that_mean_something_else_are_told(tmp_path):
    findings, seen = look("left_half", centroids.write_folder(tmp_path / "halves", halves=True))
    assert findings["T305"].verdict == "note"
    assert "means something else" in findings["T305"].sentence
    assert seen.mirrored_differ
    assert findings["T302"].numbers["accuracy"] > 0.95


def test_one_class_and_few_images_are_told(tmp_path):
    folder = centroids.write_folder(tmp_path / "one", 6, classes=[3])
    findings, _ = look("plain", folder, images=100)
    assert findings["T301"].verdict == "note"
    assert "fewer than the 100 wished" in findings["T301"].sentence
    assert "of one class alone" in findings["T301"].sentence
    assert "not looked at" in findings["T304"].sentence


@pytest.mark.parametrize(
    ("folders", "said"),
    [(["cat", "dog"], "cat is named like none of the model's 12 classes"), ([], "no images")],
    ids=["other-classes", "empty"],
)
def test_data_that_do_not_match_are_a_problem_with_a_sentence(tmp_path, folders, said):
    for name in folders:
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(b"")
    findings, seen = look("plain", tmp_path)
    assert seen is None
    assert findings["T301"].verdict == "problem"
    assert said in findings["T301"].sentence


def test_data_that_are_not_there_are_told_before_the_model_is_looked_at(tmp_path):
    """Which takes its time, and may be wrong itself."""
    (finding,) = examine(asked("tests.fixtures.none:model", tmp_path / "nothere"))
    assert (finding.code, finding.verdict) == ("T301", "problem")
    assert finding.sentence == f"There is no folder {tmp_path / 'nothere'}."


def test_a_damaged_image_is_named(tmp_path):
    folder = centroids.write_folder(tmp_path / "damaged", 2)
    (folder / "4" / "1.png").write_bytes(b"none")
    findings, seen = look("plain", folder)
    assert seen is None
    assert "4/1.png" in findings["T301"].sentence


def test_memory_too_little_to_look_at_the_data_is_told(colours):
    findings, seen = look("Cramped", colours)
    assert seen is None
    assert "memory is too little for 50 images at once" in findings["T301"].sentence


def test_methods_for_which_memory_is_too_little_are_left_out(colours):
    """The others are tried."""
    found = {each.code: each for each in examine(asked("Greedy", colours, images=60))}
    refused = found["T401"].numbers["refused"]
    assert "memory is too little" in refused["tent"]
    assert "source" in found["T401"].numbers["methods"]
    assert found["T402"].numbers["method"] not in refused


# The recommendation


def tried(**shares):
    """Two hundred images a stream, of which so many per cent are right; the same first ones."""

    def right(share):
        return (np.arange(200) < 2 * share).astype(float)

    return Tried(
        {
            method: {stream: right(share) for stream, share in zip(STREAMS, each, strict=True)}
            for method, each in shares.items()
        }
    )


SOURCE = (50, 50, 50, 90)


@pytest.mark.parametrize(
    ("others", "method", "said"),
    [
        ({"tent": (90, 80, 80, 90), "ttc_stream": (70, 70, 70, 90)}, "tent", "best mean"),
        ({"tent": (81, 80, 80, 90), "ttc_stream": (80, 80, 80, 90)}, "ttc_stream", "noise"),
        ({"ttc": (99, 99, 99, 60), "norm": (60, 60, 60, 90)}, "norm", "below source in one by"),
        ({"ttc": (99, 99, 99, 60)}, "source", "each method is below"),
        ({"ttc_stream": (50, 50, 50, 90)}, "source", "brings nothing"),
        ({}, "source", "nothing else runs"),
    ],
    ids=["best", "default-where-as-good", "never-below", "all-below", "nothing-gained", "alone"],
)
def test_the_method_is_the_best_that_is_nowhere_below_source(others, method, said):
    others = {
        name: tuple(share + (0.5 if name == "tent" and share == 81 else 0) for share in shares)
        for name, shares in others.items()
    }
    got, why = chosen(tried(source=SOURCE, **others))
    assert got == method
    assert said in why


def test_the_recommended_command_runs_and_has_the_right_normalisation(colours):
    """With the options that were given, and what was found in their place."""
    wanted = asked("byte", colours, images=60)
    found = {finding.code: finding for finding in examine(wanted)}
    assert set(found["T401"].numbers["methods"]) | set(found["T401"].numbers["refused"]) == {
        *("source", "norm", "t3a", "eta", "tipi", "tent", "ttc", "ttc_stream")
    }
    command = shlex.split(found["T402"].numbers["command"])
    assert command[:2] == ["ttc", "serve"]
    assert "--std" in command
    with launch(*command[2:]) as running, Client(running.url) as client:
        answer = client.predict(colours / "7" / "0.png")
    assert answer.predictions[0].class_ == 7
