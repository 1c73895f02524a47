"""The root of all errors that a user can cause and mend. Imports nothing, so that it costs nothing.

UserError           its text is a sentence: what was wrong, what is accepted
├── LoadError       a model
├── DataError       a data set
├── StateError      a saved state
└── ServiceError    the service, as its client sees it
"""


class UserError(ValueError):
    """Shown as a sentence, without a trace; raise one of the subclasses."""
