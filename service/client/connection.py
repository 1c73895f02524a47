"""What both clients know: where the service is, how to ask it, how to read its answers."""

import math
import time
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
from pydantic import ValidationError

from service.client.calls import Call, Reply
from service.client.errors import REFUSED, ServiceError

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT = 60.0
UNSENDABLE = (httpx.InvalidURL, UnicodeError)
# The form of the service's own refusals (RFC 9457). No proxy of its own accord has it.
_PROBLEM = "application/problem+json"
# There was no connection: nothing can have been accepted.
_UNCONNECTED = (httpx.ConnectError, httpx.ConnectTimeout)


def check_url(url: str) -> None:
    """Raise ValueError unless a service can be asked there."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"The URL {url!r} cannot be read: {error}.") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"The URL must be like {DEFAULT_URL}; got {url!r}.")
    if (parsed.port or 0) > 65535 or parsed.query or parsed.fragment:
        raise ValueError(
            f"The URL must be like {DEFAULT_URL}, with a port up to 65535 and no ? or #; "
            f"got {url!r}."
        )


class Connection:
    """The part of a client that does not wait."""

    def __init__(
        self,
        url: str,
        token: str | None,
        timeout: float,
        connections: int,
        admin_token: str | None,
        retry_budget: float,
    ) -> None:
        check_url(url)
        if not 0 <= retry_budget < math.inf:
            raise ValueError(f"retry_budget is in seconds, 0 or more; got {retry_budget!r}.")
        self.url = url.rstrip("/")
        self.timeout, self.retry_budget = timeout, retry_budget
        token = admin_token if token is None else token
        self._admin = {} if admin_token is None else _bearer(admin_token)
        self._options: dict[str, Any] = {
            "base_url": self.url,
            "headers": {
                b"Content-Type": b"application/json",
                **({} if token is None else _bearer(token)),
            },
            "timeout": timeout,
            # Certificates are read once, not for each connection.
            "verify": httpx.create_ssl_context(),
            "limits": httpx.Limits(
                max_connections=connections,
                max_keepalive_connections=connections,
                # Servers close idle connections after 5 seconds, uvicorn among them: a request
                # must not go into one that closes at that moment.
                keepalive_expiry=2.0,
            ),
            # This computer is never asked for by way of a proxy.
            "mounts": {f"all://{host}": None for host in ("localhost", "127.0.0.1", "[::1]")},
        }

    def _budget(self, call: Call[Any]) -> float:
        return self.retry_budget if call.may_repeat else 0.0

    def _request(self, call: Call[Any]) -> dict[str, Any]:
        return {
            "method": call.method,
            "url": call.path,
            "params": call.params,
            "content": call.body,
            "headers": self._admin if call.admin else {},
        }

    def _read(self, call: Call[Reply], response: httpx.Response) -> Reply:
        if response.is_success:
            try:
                return call.reply.model_validate_json(response.content)
            except ValidationError:
                detail = (
                    f"{self.url}{call.path} answered something else than expected; "
                    "is it the service, and of the client's version?"
                )
                raise ServiceError(response.status_code, detail) from None
        raise self._refusal(call, response)

    def _refusal(self, call: Call[Any], response: httpx.Response) -> ServiceError:
        try:
            problem = response.json()
        except (ValueError, RecursionError):
            problem = None
        if not isinstance(problem, dict):
            problem = {}
        detail = problem.get("detail")
        if not isinstance(detail, str):
            status = f"{response.status_code} {response.reason_phrase}"
            detail = f"{self.url}{call.path} answered {status}."
        request_id = problem.get("request_id") or response.headers.get("X-Request-Id")
        media_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        return ServiceError(
            response.status_code,
            detail,
            _retry_after(response.headers.get("Retry-After", "")),
            request_id,
            may_repeat=response.status_code in REFUSED
            and (media_type == _PROBLEM or call.method == "GET"),
        )

    def _no_events(self, error: Exception) -> ServiceError:
        """No connection for events, or one that broke: nothing was asked that could count twice."""
        found = self._no_answer(error)
        found.may_repeat = not isinstance(error, UNSENDABLE)
        return found

    def _no_answer(self, error: Exception) -> ServiceError:
        reason = str(error) or type(error).__name__
        if isinstance(error, httpx.ConnectError):
            sentence = f"Nothing answers at {self.url} ({error}); is `ttc serve` running there?"
        elif isinstance(error, httpx.TimeoutException):
            sentence = f"{self.url} did not answer within {self.timeout:g} seconds."
        elif isinstance(error, UNSENDABLE):
            sentence = f"The request cannot be sent to {self.url}: {reason}."
        elif isinstance(error, httpx.DecodingError):
            sentence = f"The answer of {self.url} cannot be decoded: {reason}."
        else:
            sentence = f"The connection to {self.url} broke before the answer: {reason}."
        return ServiceError(None, sentence, may_repeat=isinstance(error, _UNCONNECTED))


def _bearer(token: str) -> dict[bytes, bytes]:
    if any(ord(each) < 32 or ord(each) == 127 for each in token):  # and it is shown to nobody
        raise ValueError("A token has no line ends or control characters; this one does.")
    return {b"Authorization": b"Bearer " + token.encode(errors="surrogateescape")}


def _retry_after(header: str) -> float | None:
    """Seconds to wait; of a date, which proxies send, those that are left until then."""
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return seconds if 0 <= seconds < math.inf else None


def means_not_ready(error: ServiceError) -> bool:
    return error.status in (None, 503)
