"""All checks, one after another; `checks.py` has their codes."""

from collections.abc import Iterator

from service.doctor.asked import Asked
from service.doctor.checks import Finding
from service.doctor.data import look_at_data
from service.doctor.installation import look_at_device, look_at_installation
from service.doctor.model import look_at_model
from service.doctor.recommendation import mend_first, start_command, without_data
from service.doctor.trial import look_at_methods
from ttc_core.datasets import DataError, check_there


def examine(asked: Asked) -> Iterator[Finding]:
    """Yield what is found, one check after another; those that need what failed are left out.

    Data that are not there are found first, and then alone: the others take their time.
    """
    if asked.data is not None:
        try:
            check_there(asked.data)
        except DataError as error:
            yield Finding("T301", "problem", str(error))
            return
    yield from look_at_installation()
    device = look_at_device(asked)
    yield device
    if device.verdict == "problem":
        return
    model = yield from look_at_model(asked)
    if model is None:
        return
    if asked.data is None:
        yield without_data(asked, model)
        return
    seen = yield from look_at_data(asked, model)
    if seen is None:
        return
    if seen.unsolved:
        yield mend_first(asked, seen)
        return
    tried = yield from look_at_methods(asked, seen)
    yield start_command(asked, seen, tried)
