"""All routes, and which of them a request is for, for those who do not answer it themselves."""

from typing import NamedTuple

from fastapi.routing import APIRoute
from starlette.routing import Match
from starlette.types import Scope

from service.routes import control, docs, feedback, health, live, predict, v2, v2_infer

ROUTERS = tuple(
    module.router for module in (predict, feedback, control, live, health, v2, v2_infer, docs)
)
OF_ONE_STREAM = frozenset(
    {predict.predict, control.reset, control.rollback, control.snapshots, v2_infer.infer}
)
"""The functions of those that a request of one stream is for."""
_ROUTES = [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]


class Found(NamedTuple):
    """The route of a request.

    Attributes:
        route: None: no route has its path.
        is_taken: it has the method that the route takes.
    """

    route: APIRoute | None
    is_taken: bool

    def is_for(self, *functions: object) -> bool:
        """Whether one of these functions of ours would answer it."""
        return self.is_taken and self.route is not None and self.route.endpoint in functions


def route_of(scope: Scope) -> Found:
    """Find the route of a request."""
    partly = None
    for route in _ROUTES:
        match, _ = route.matches(scope)
        if match == Match.FULL:
            return Found(route, True)
        if match == Match.PARTIAL and partly is None:
            partly = route
    return Found(partly, False)
