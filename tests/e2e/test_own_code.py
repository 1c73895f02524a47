"""Code of a user's own is told apart, in the status and in saved states."""

import sys

import pytest

from service.state_folder import StateFolder
from tests.fixtures.requests import ask
from ttc_core.methods import create
from ttc_core.plugins import import_attribute
from ttc_core.state_file import StateError

CODE = "from tests.fixtures.methods import {base} as Base\n\n\nclass Mine(Base):\n    pass\n"
SPEC, MODEL = "edited_code:Mine", "edited_code:model"


@pytest.fixture
def own(tmp_path, monkeypatch, make_method, serve):
    """Write a module with a method in it, and serve that."""
    path = tmp_path / "edited_code.py"
    monkeypatch.syspath_prepend(tmp_path)

    def make(code, **settings):
        path.write_text(code)
        sys.modules.pop("edited_code", None)
        import_attribute(SPEC)
        method = create(SPEC, make_method("source").model)
        return serve(method=SPEC, source=method, state_dir=tmp_path / "states", **settings)

    yield make
    sys.modules.pop("edited_code", None)


def code_of(running):
    return running.http.get("/status").json()["settings"]["method"]["code_digest"]


def test_a_state_saved_by_other_code_of_the_same_name_is_not_taken_up(own, pictures, tmp_path):
    """The stream starts at the source, the event says why, and the file is kept."""
    code = CODE.format(base="ClassBalance")
    with own(code) as running:
        ask(running, pictures[:4])
        before = code_of(running)
    with own(code) as running:  # unchanged
        ask(running, pictures[:4])
        assert code_of(running) == before
        assert running.at_rest()["streams"]["default"]["images"] == 8
    with own(code.replace("pass", "temperature = 2")) as running:
        ask(running, pictures[:4])
        after, status = code_of(running), running.at_rest()
    assert after != before
    assert status["streams"]["default"]["images"] == 4
    (event,) = [each for each in status["events"] if each["event"] == "rejected"]
    assert f"was saved for method code {before}, not {after}." in event["reason"]
    assert (tmp_path / "states" / "default.rejected").exists()


def test_a_state_that_tells_no_code_is_taken_up(own, pictures, tmp_path, make_method):
    """Files of former versions have none."""
    code = CODE.format(base="ClassBalance")
    with own(code):
        pass
    method = create(SPEC, make_method("source").model)
    former = StateFolder(tmp_path / "states", method=SPEC, model="bundled")
    former.save("default", method, of_stream={"images": 40})
    former.close()
    with own(code) as running:
        ask(running, pictures[:4])
        assert running.at_rest()["streams"]["default"]["images"] == 44


def test_what_has_no_code_of_ones_own_tells_none(source_server):
    """Its version, and the digest of its weights, tell it apart."""
    status = source_server.http.get("/status").json()
    assert "code_digest" not in status["settings"]["method"]
    assert status["model"]["code"] is None


def test_a_state_of_other_code_of_the_model_is_none_of_this_stream(tmp_path, make_method):
    """Its weights may be the same, and what it does with them another thing."""
    method = create("source", make_method("source").model)
    for before, after in (("abc", "abc"), ("abc", "abd")):
        folder = StateFolder(tmp_path, method="source", model=MODEL, code={"model": before})
        folder.save("gate", method)
        folder.close()
        folder = StateFolder(tmp_path, method="source", model=MODEL, code={"model": after})
        if before == after:
            assert folder.load("gate", method) is not None
        else:
            with pytest.raises(StateError, match=r"saved for model code abc, not abd\."):
                folder.load("gate", method)
        folder.close()
