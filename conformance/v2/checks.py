"""What a check is, and what comes of all of them: a row each."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from conformance.v2.asking import Kit, NotApplicable, NotAsked
from conformance.v2.server import Failed

REQUIRED = "required by the protocol"
OPTIONAL = "optional extensions"
ROBUST = "robustness"

YES, NO, UNASKED, INAPPLICABLE = "yes", "no", "not asked", "not applicable"


@dataclass(frozen=True)
class Row:
    """What came of a check.

    `why` says what the server did, or why it was not asked; `request` is the last that was sent.
    """

    group: str
    name: str
    feature: str
    outcome: str
    why: str | None
    request: str | None


@dataclass(frozen=True)
class Check:
    """A feature; `ask` raises Failed where the server has it not.

    `extension` is what a server that has it may list in its metadata.
    """

    group: str
    name: str
    feature: str
    ask: Callable[[Kit], object]
    extension: str | None = None


class Checks(list[Check]):
    """The checks of a group, in the order in which they are asked."""

    def __init__(self, group: str) -> None:
        super().__init__()
        self._group = group

    def add(
        self, name: str, feature: str, extension: str | None = None
    ) -> Callable[[Callable[[Kit], object]], Callable[[Kit], object]]:
        """Make a check of a function."""

        def added(ask: Callable[[Kit], object]) -> Callable[[Kit], object]:
            self.append(Check(self._group, name, feature, ask, extension))
            return ask

        return added


def rows(kit: Kit, checks: Iterable[Check]) -> Iterator[Row]:
    """Ask a server, a row as soon as it is known."""
    for each in checks:
        outcome, why = YES, None
        kit.server.shown = ""
        try:
            each.ask(kit)
        except Failed as error:
            outcome, why = NO, str(error)
            if each.extension in kit.extensions:
                why += f" (the server lists {each.extension})"
        except NotAsked as error:
            outcome, why = UNASKED, str(error)
        except NotApplicable as error:
            outcome, why = INAPPLICABLE, str(error)
        yield Row(each.group, each.name, each.feature, outcome, why, kit.server.shown or None)


def conforms(found: list[Row]) -> bool:
    """Whether everything required holds, as far as this model can show it."""
    return all(row.outcome in (YES, INAPPLICABLE) for row in found if row.group == REQUIRED)
