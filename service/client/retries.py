"""When a call is sent again: where nothing of it was accepted, within a budget of seconds."""

from typing import TypeVar

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_before_delay,
    wait_random_exponential,
)

from service.client.errors import ServiceError

DEFAULT_RETRY_BUDGET = 10.0

Kind = TypeVar("Kind", Retrying, AsyncRetrying)

# 0 to 0.25 seconds at first, twice as many each time: clients that were refused together do not
# come back together.
_backoff = wait_random_exponential(multiplier=0.25, max=4.0)


def retrying(kind: type[Kind], budget: float) -> Kind:
    """Make what sends a call again.

    Args:
        budget: seconds since the call began, after which none is sent again; 0: never.
    """
    return kind(
        retry=retry_if_exception(_may_repeat),
        wait=_wait,
        stop=stop_before_delay(budget),
        reraise=True,
    )


def _may_repeat(error: BaseException) -> bool:
    return isinstance(error, ServiceError) and error.may_repeat


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, ServiceError) else None
    return (asked or 0.0) + _backoff(state)
