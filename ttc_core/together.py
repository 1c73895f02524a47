"""Work of several streams side by side: what they ask of the network is answered for all at once.

Each piece of work runs in a fiber of its own, in one thread, until it asks for a pass of the
network or for a gradient. Once all of them wait (or are done), what can be one pass is one, and
each goes on with its own part. What a piece of work is made of need not know of it.
"""

import threading
import traceback
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from contextvars import copy_context
from copy import copy
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from greenlet import getcurrent, greenlet

T = TypeVar("T")


class Wanted(Protocol):
    """What a piece of work waits for.

    Attributes:
        turn: those of the lowest are carried out first, while others wait.
        group: what is equal can be carried out at once; None: it stands alone.
    """

    @property
    def turn(self) -> int: ...

    @property
    def group(self) -> Hashable: ...

    def alone(self) -> Any:
        """Carry it out."""

    @classmethod
    def at_once(cls, wanted: Sequence[Self]) -> Sequence["Any | Failed"]:
        """Carry out those of a group; what each comes to."""


@dataclass(frozen=True)
class Done(Generic[T]):
    """What a piece of work gave."""

    value: T


@dataclass(frozen=True)
class Failed:
    """What a piece of work, or something it wanted, raised.

    What its frames held is let go of: the error refers to them, and they often to the error, so
    that the memory of a pass that found too little would stay taken while fewer images are tried.
    """

    error: Exception

    def __post_init__(self) -> None:
        chain: list[BaseException | None] = [self.error]
        seen: set[int] = set()
        while chain:
            error = chain.pop()
            if error is not None and id(error) not in seen:
                seen.add(id(error))
                traceback.clear_frames(error.__traceback__)  # those at work are left alone
                chain += [error.__cause__, error.__context__]


@dataclass(frozen=True)
class _Waiting:
    """What a fiber waits for, and what it said of it."""

    turn: int
    group: Hashable
    wanted: Wanted


# Whom the fiber at work gives to, by thread; None where there is none.
_running = threading.local()


def answered(wanted: Wanted) -> Any:
    """What is wanted: at once, or together with what others want where there are others."""
    hub = getattr(_running, "hub", None)
    if hub is None:
        return wanted.alone()
    # A thread's, which all its fibers share.
    grad = torch.is_grad_enabled()
    # What it belongs to is found out here: where that fails, it is whose wish it is that fails.
    reply = hub.switch(_Waiting(wanted.turn, wanted.group, wanted))
    torch.set_grad_enabled(grad)
    if isinstance(reply, Failed):
        raise reply.error
    return reply


def together(works: Sequence[Callable[[], T]]) -> list[Done[T] | Failed]:
    """Do pieces of work, each with what it asks of the network shared with the others.

    Whatever one raises is its own, and the others go on.

    Returns:
        What each came to, in their order. They began in this order, too.
    """
    if len(works) == 1:
        return [_settled(works[0])]
    hub, outer = getcurrent(), getattr(_running, "hub", None)
    fibers = [greenlet(_settled) for _ in works]
    for fiber in fibers:
        fiber.gr_context = copy_context()
    grad = torch.is_grad_enabled()

    def go_on(number: int, given: Any) -> None:
        _running.hub = hub
        try:
            came = fibers[number].switch(given)
        finally:
            _running.hub = outer
            torch.set_grad_enabled(grad)
        if fibers[number].dead:
            outcomes[number] = came
        else:
            waiting[number] = came

    outcomes: dict[int, Done[T] | Failed] = {}
    waiting: dict[int, _Waiting] = {}
    for number, work in enumerate(works):
        go_on(number, work)
    while waiting:
        groups: dict[Hashable, list[int]] = defaultdict(list)
        first = min(each.turn for each in waiting.values())
        for number, each in waiting.items():
            if each.turn == first:
                group = number if each.group is None else each.group
                groups[(type(each.wanted), group)].append(number)
        for numbers in groups.values():
            replies = _carried_out([waiting.pop(number).wanted for number in numbers])
            for number, reply in zip(numbers, replies, strict=True):
                go_on(number, reply)
    return [outcomes[number] for number in range(len(works))]


def _settled(work: Callable[[], T]) -> Done[T] | Failed:
    try:
        return Done(work())
    except Exception as error:
        return Failed(error)


def attempted(call: Callable[[], T]) -> T | Failed:
    """What a call gives, or that it failed."""
    try:
        return call()
    except Exception as error:
        return Failed(error)


def _carried_out(wanted: Sequence[Wanted]) -> Sequence[Any]:
    """What each comes to, or Failed."""
    if len(wanted) == 1:
        return [attempted(wanted[0].alone)]
    try:
        return type(wanted[0]).at_once(wanted)
    except Exception as error:
        return [Failed(_own(error)) for _ in wanted]


def _own(error: Exception) -> Exception:
    """The error for one of several: each is raised, and told where, by itself."""
    try:
        own = copy(error)
    except Exception:  # one of somebody's own need not let itself be copied
        return error
    own.__cause__ = error.__cause__
    return own.with_traceback(error.__traceback__)
