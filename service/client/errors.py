"""What a client raises where no result came."""

from ttc_core.errors import UserError

REFUSED = (429, 503)
"""The statuses of a request that was turned away as it came: nothing was learned from it, if the
service says so itself. Proxies answer 503 after they have forwarded it, too."""


class ServiceError(UserError):
    """The service did not answer with a result; `str(error)` is the sentence that says why.

    Attributes:
        status: the HTTP status; None if no answer came.
        detail: the sentence, the server's own where there is one.
        retry_after: seconds after which the server wants to be asked again; None: not said.
        request_id: the server's name for the request, as in its log; None: not said.
        may_repeat: nothing was accepted: the service itself refused (429, 503, as a problem
            document), or there was no connection; or the call only reads, and whoever it was
            refused. Else the service may have learned from the images already.
    """

    def __init__(
        self,
        status: int | None,
        detail: str,
        retry_after: float | None = None,
        request_id: str | None = None,
        *,
        may_repeat: bool = False,
    ) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail
        self.retry_after, self.request_id = retry_after, request_id
        self.may_repeat = may_repeat
