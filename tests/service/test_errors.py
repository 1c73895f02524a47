"""Every refusal has its status, its title and its place in the tree."""

import pickle

import pytest

from service import errors
from service.errors import (
    STATUS,
    TITLE,
    NoModel,
    NoSnapshot,
    NotBroughtBack,
    PredictionFailed,
    QueueFull,
    Refused,
    SavedDoesNotFit,
    StateNotRemoved,
    TooManyStreams,
)

REASONS = {"full", "too_large", "unreadable", "type", "range", "draining", "deadline", "streams"}


def subclasses(error):
    return {error}.union(*map(subclasses, error.__subclasses__()))


EVERY_ERROR = sorted(subclasses(Refused) - {Refused}, key=lambda error: error.__name__)


def test_every_refusal_has_a_status_and_a_title():
    """A new Refused without a row in the table fails here, not in production."""
    assert set(STATUS) == set(TITLE) == set(EVERY_ERROR)


def test_statuses_are_distinct_errors():
    """A client can tell by status alone what to do; 429 has two causes, and one cure: later.

    500 has three, of different routes; 404 says in its title which of three it is.
    """
    assert STATUS[QueueFull] == STATUS[TooManyStreams] == 429
    assert STATUS[PredictionFailed] == STATUS[StateNotRemoved] == STATUS[NotBroughtBack] == 500
    assert STATUS[NoModel] == STATUS[NoSnapshot] == STATUS[SavedDoesNotFit] == 404
    assert len(set(STATUS.values())) == len(STATUS) - 5
    assert all(400 <= status <= 599 for status in STATUS.values())


def test_titles_are_distinct_and_not_sentences():
    """A title names the kind of problem; the sentence is the error's own text."""
    assert len(set(TITLE.values())) == len(TITLE)
    assert all(title and not title.endswith(".") for title in TITLE.values())


@pytest.mark.parametrize("error", EVERY_ERROR, ids=lambda error: error.__name__)
def test_the_drawn_tree_names_the_error_and_its_status(error):
    """The tree that opens the module is complete and its statuses are the table's."""
    assert any(
        error.__name__ in line and f" {STATUS[error]} " in line
        for line in errors.__doc__.splitlines()
    )


def test_every_reason_of_the_metric_is_some_errors_reason():
    """The label values of the rejection metric and the errors' reasons are the same set."""
    assert {error.reason for error in EVERY_ERROR if error.reason is not None} == REASONS


def test_an_error_is_its_sentence_and_what_came_with_it():
    """The text is the sentence for the client; index and retry_after ride along."""
    error = QueueFull("The queue holds 100 images; come back later.", index=3, retry_after=0.5)
    assert str(error) == "The queue holds 100 images; come back later."
    assert (error.index, error.retry_after, error.reason) == (3, 0.5, "full")
    assert (Refused("No.").index, Refused("No.").retry_after) == (None, None)


def test_an_error_survives_pickling():
    """An error may come out of another process and is still itself."""
    error = pickle.loads(pickle.dumps(QueueFull("Full.", index=1, retry_after=2.0)))
    assert (type(error), str(error), error.index, error.retry_after) == (QueueFull, "Full.", 1, 2.0)
