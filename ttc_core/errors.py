"""The root of all errors that a user can cause and mend. Imports nothing, so that it costs nothing.

UserError           its text is a sentence: what was wrong, what is accepted
├── LoadError       a model
├── ModelError      a network that fails, or answers with something else, while it runs
├── PluginError     code of a user's own, while it is imported or called
├── DataError       a data set
├── RecordError     a calibration record
├── SnapshotError   a method that cannot be brought back to a good state of its own
├── StateError      a saved state
└── ServiceError    the service, as its client sees it
"""

LONGEST = 300


class UserError(ValueError):
    """Shown as a sentence, without a trace; raise one of the subclasses.

    A stranger's names in it move no cursor: what is not printable becomes a question mark.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(printable(sentence))


class LoadError(UserError):
    """A model could not be loaded; the text says why and what is accepted."""


class PluginError(UserError):
    """Code of a user's own could not be imported, or failed when it was called."""


class ModelError(UserError):
    """A network of somebody's own failed while it ran, or answered with no logits."""


def told(error: BaseException) -> str:
    """Say in a short line what a user's own code raised: its kind, its text's first line."""
    kind = type(error).__name__
    try:
        text = str(error).strip()
    except Exception:  # an exception of somebody's own need not have a text
        text = ""
    if isinstance(error, SystemExit):
        return f"it ended the program ({kind}: {text or 0})"
    line = text.splitlines()[0].rstrip(".") if text else ""
    if len(line) > LONGEST:
        line = line[:LONGEST] + "…"
    return f"{kind}: {line}" if line else kind


def shown(value: object) -> str:
    """A stranger's text as a sentence can hold it: short, and nothing that moves a cursor."""
    text = str(value)
    return printable(text if len(text) <= 300 else f"{text[:150]}…{text[-100:]}")


def printable(text: str) -> str:
    """A stranger's text without what would move a cursor."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)
