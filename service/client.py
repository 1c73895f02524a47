"""The Python client: `Client`, and `AsyncClient` for asyncio. Needs neither torch nor the model.

Both send the same `Call`s and read answers by the same function; they differ in waiting only.
"""

import asyncio
import base64
import contextlib
import json
import math
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from operator import index
from typing import Any, Generic, Self, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from service.schemas import (
    FeedbackResponse,
    Health,
    PredictResponse,
    ReloadResponse,
    ResetResponse,
    RollbackResponse,
    SnapshotsResponse,
    StatusResponse,
)
from ttc_core.errors import UserError

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT = 60.0
UNSENDABLE = (httpx.InvalidURL, UnicodeError)

Reply = TypeVar("Reply", bound=BaseModel)


class ServiceError(UserError):
    """The service did not answer with a result; `str(error)` is the sentence that says why.

    Attributes:
        status: the HTTP status; None if no answer came.
        detail: the sentence, the server's own where there is one.
        retry_after: seconds after which the server wants to be asked again; None: not said.
        request_id: the server's name for the request, as in its log; None: not said.
    """

    def __init__(
        self,
        status: int | None,
        detail: str,
        retry_after: float | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail
        self.retry_after, self.request_id = retry_after, request_id


@dataclass(frozen=True)
class Call(Generic[Reply]):
    """One request, ready to be sent, and the type of what comes back."""

    method: str
    path: str
    reply: type[Reply]
    params: dict[str, str] = field(default_factory=dict)
    admin: bool = False
    body: bytes | None = field(default=None, repr=False)


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


def predict_call(
    images: Sequence[bytes],
    *,
    labels: Sequence[int | None] | None = None,
    ids: Sequence[str | None] | None = None,
    stream: str | None = None,
    top_k: int = 1,
    learn: bool = True,
    context: bool = True,
) -> Call[PredictResponse]:
    """Build a request for predictions; may run in any thread, ahead of its sending.

    Args:
        images: one or more whole image files: JPEG, PNG, WebP, GIF or BMP.
        labels: the true classes, as many as images; the server counts them, it never learns them.
        ids: as many names, echoed in the answer.
        stream: whose stream the images belong to; None: the default one.
        top_k: how many classes each answer lists.
        learn: off: the images are answered, and nothing moves.
        context: off: the prior neither weighs in the answers nor follows them; adaptation does.

    Raises:
        ValueError: no images, another number of labels or ids, or a label that is no whole number.
    """
    if not images:
        raise ValueError("images must hold at least one image file; got none.")
    entries: list[dict[str, Any]] = [
        {"b64": base64.b64encode(image).decode("ascii")} for image in images
    ]
    for name, values in (("label", labels), ("id", ids)):
        if values is None:
            continue
        if len(values) != len(images):
            raise ValueError(
                f"{name}s must be as many as images, {len(images)}; got {len(values)}."
            )
        for entry, value in zip(entries, values, strict=True):
            if value is not None:
                entry[name] = value if name == "id" else _whole_number(value)
    params = {} if top_k == 1 else {"top_k": str(top_k)}
    if not learn:
        params["learn"] = "false"
    if not context:
        params["context"] = "false"
    return Call(
        "POST",
        "/predict",
        PredictResponse,
        params | _stream(stream),
        body=json.dumps({"images": entries}).encode(),
    )


def feedback_call(
    labels: Iterable[tuple[str, int]], *, stream: str | None = None
) -> Call[FeedbackResponse]:
    """Build a request that tells labels which came after the answers.

    Args:
        labels: at most 10,000 pairs of an image's id and its true class.
        stream: whose stream the images belong to; None: the default one.
    """
    entries = [{"id": name, "label": _whole_number(label)} for name, label in labels]
    return Call(
        "POST",
        "/feedback",
        FeedbackResponse,
        _stream(stream),
        body=json.dumps({"labels": entries}).encode(),
    )


def _whole_number(label: Any) -> int:
    if not isinstance(label, bool):
        with contextlib.suppress(TypeError):
            return index(label)
    raise ValueError(f"labels must be whole numbers, or None; got {label!r}.")


def _reset_call(stream: str | None) -> Call[ResetResponse]:
    return Call("POST", "/reset", ResetResponse, _stream(stream), admin=True)


def _rollback_call(stream: str | None, to: int | None) -> Call[RollbackResponse]:
    params = _stream(stream) | ({} if to is None else {"to": str(to)})
    return Call("POST", "/rollback", RollbackResponse, params, admin=True)


def _snapshots_call(stream: str | None) -> Call[SnapshotsResponse]:
    return Call("GET", "/snapshots", SnapshotsResponse, _stream(stream))


_RELOAD_CALL = Call("POST", "/model", ReloadResponse, admin=True)
_STATUS_CALL = Call("GET", "/status", StatusResponse)
_READY_CALL = Call("GET", "/readyz", Health)


def _stream(name: str | None) -> dict[str, str]:
    return {} if name is None else {"stream": name}


class _Connection:
    """What both clients know: where the service is, how to ask it, how to read its answers."""

    def __init__(
        self,
        url: str,
        token: str | None,
        timeout: float,
        connections: int,
        admin_token: str | None,
    ) -> None:
        check_url(url)
        self.url = url.rstrip("/")
        self.timeout = timeout
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
        raise _refusal(self.url + call.path, response)

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
        return ServiceError(None, sentence)


def _bearer(token: str) -> dict[bytes, bytes]:
    if any(ord(each) < 32 or ord(each) == 127 for each in token):  # and it is shown to nobody
        raise ValueError("A token has no line ends or control characters; this one does.")
    return {b"Authorization": b"Bearer " + token.encode(errors="surrogateescape")}


def _refusal(address: str, response: httpx.Response) -> ServiceError:
    try:
        problem = response.json()
    except (ValueError, RecursionError):
        problem = None
    if not isinstance(problem, dict):
        problem = {}
    detail = problem.get("detail")
    if not isinstance(detail, str):
        detail = f"{address} answered {response.status_code} {response.reason_phrase}."
    try:
        retry_after = float(response.headers["Retry-After"])
    except (KeyError, ValueError):  # the header may also be a date, which our server never sends
        retry_after = math.nan
    request_id = problem.get("request_id") or response.headers.get("X-Request-Id")
    known = 0 <= retry_after < math.inf
    return ServiceError(response.status_code, detail, retry_after if known else None, request_id)


def _means_not_ready(error: ServiceError) -> bool:
    return error.status in (None, 503)


class Client(_Connection):
    """Ask the service from ordinary code; a context manager, safe to share between threads.

    Args:
        url: of the service, with a path if it is served under one.
        token: what the server's --token says, if it has one.
        admin_token: what its --admin-token says, for resets and rollbacks; either stands for both.
        timeout: seconds to wait for connecting, and for an answer.

    Every method raises ServiceError when no result came; nothing is tried again by itself.

    Raises:
        ValueError: the URL is none, or a token has a line end or another control character.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        token: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        *,
        connections: int = 100,
        admin_token: str | None = None,
    ) -> None:
        super().__init__(url, token, timeout, connections, admin_token)
        self._http = httpx.Client(**self._options)

    def send(self, call: Call[Reply]) -> Reply:
        """Send a prepared call and wait for its answer."""
        try:
            response = self._http.request(**self._request(call))
        except (httpx.RequestError, *UNSENDABLE) as error:
            raise self._no_answer(error) from error
        return self._read(call, response)

    def predict(
        self,
        images: Sequence[bytes],
        *,
        labels: Sequence[int | None] | None = None,
        ids: Sequence[str | None] | None = None,
        stream: str | None = None,
        top_k: int = 1,
        learn: bool = True,
        context: bool = True,
    ) -> PredictResponse:
        """Classify image files, in one request; arguments as in `predict_call`."""
        call = predict_call(
            images,
            labels=labels,
            ids=ids,
            stream=stream,
            top_k=top_k,
            learn=learn,
            context=context,
        )
        return self.send(call)

    def feedback(
        self, labels: Iterable[tuple[str, int]], *, stream: str | None = None
    ) -> FeedbackResponse:
        """Tell true classes of images answered before; arguments as in `feedback_call`."""
        return self.send(feedback_call(labels, stream=stream))

    def reset(self, stream: str | None = None) -> ResetResponse:
        """Put a stream back to the source model; "*" means all, None the default one."""
        return self.send(_reset_call(stream))

    def snapshots(self, stream: str | None = None) -> SnapshotsResponse:
        """List the good states of a stream that `rollback` can go back to."""
        return self.send(_snapshots_call(stream))

    def rollback(self, stream: str | None = None, to: int | None = None) -> RollbackResponse:
        """Bring a stream back to a good state, by its version; None: the last one."""
        return self.send(_rollback_call(stream, to))

    def reload(self) -> ReloadResponse:
        """Have the model loaded anew; it takes as long as reading and trying it out does."""
        return self.send(_RELOAD_CALL)

    def status(self) -> StatusResponse:
        """Read what is served and how it fares."""
        return self.send(_STATUS_CALL)

    def ready(self) -> bool:
        """Whether the service answers predictions now; False while nothing listens there."""
        try:
            self.send(_READY_CALL)
        except ServiceError as error:
            if _means_not_ready(error):
                return False
            raise
        return True

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient(_Connection):
    """Ask the service from asyncio: as `Client`, with `await` and `async with`.

    Args:
        connections: at once, at most; further calls wait for one, as long as for an answer.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        token: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        *,
        connections: int = 100,
        admin_token: str | None = None,
    ) -> None:
        super().__init__(url, token, timeout, connections, admin_token)
        self._connections = connections
        self._begin(None)

    def _begin(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Have no connections: those of another loop are of no use in this one."""
        self._loop, self._places = loop, asyncio.Semaphore(self._connections)
        # One for each connection, since a pool of httpx looks at all of its own with each request.
        self._all: list[httpx.AsyncClient] = []
        # The last used first: the server is the least likely to have closed it.
        self._idle: list[httpx.AsyncClient] = []

    async def send(self, call: Call[Reply]) -> Reply:
        """Send a prepared call and wait for its answer."""
        return self._read(call, await self._respond(call))

    async def _respond(self, call: Call[Any]) -> httpx.Response:
        try:
            async with self._connection() as connection:
                return await connection.request(**self._request(call))
        except (httpx.RequestError, *UNSENDABLE) as error:
            raise self._no_answer(error) from error

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[httpx.AsyncClient]:
        if self._loop is not (loop := asyncio.get_running_loop()):
            self._begin(loop)
        places, idle = self._places, self._idle
        try:
            async with asyncio.timeout(self.timeout):
                await places.acquire()
        except TimeoutError:
            raise httpx.PoolTimeout("all connections are in use") from None
        try:
            connection = idle.pop() if idle else self._another()
            try:
                yield connection
            finally:
                idle.append(connection)
        finally:
            places.release()

    def _another(self) -> httpx.AsyncClient:
        connection = httpx.AsyncClient(**self._options)
        self._all.append(connection)
        return connection

    async def predict(
        self,
        images: Sequence[bytes],
        *,
        labels: Sequence[int | None] | None = None,
        ids: Sequence[str | None] | None = None,
        stream: str | None = None,
        top_k: int = 1,
        learn: bool = True,
        context: bool = True,
    ) -> PredictResponse:
        """Classify image files, in one request; arguments as in `predict_call`."""
        call = predict_call(
            images,
            labels=labels,
            ids=ids,
            stream=stream,
            top_k=top_k,
            learn=learn,
            context=context,
        )
        return await self.send(call)

    async def feedback(
        self, labels: Iterable[tuple[str, int]], *, stream: str | None = None
    ) -> FeedbackResponse:
        """Tell true classes of images answered before; arguments as in `feedback_call`."""
        return await self.send(feedback_call(labels, stream=stream))

    async def reset(self, stream: str | None = None) -> ResetResponse:
        """Put a stream back to the source model; "*" means all, None the default one."""
        return await self.send(_reset_call(stream))

    async def snapshots(self, stream: str | None = None) -> SnapshotsResponse:
        """List the good states of a stream that `rollback` can go back to."""
        return await self.send(_snapshots_call(stream))

    async def rollback(self, stream: str | None = None, to: int | None = None) -> RollbackResponse:
        """Bring a stream back to a good state, by its version; None: the last one."""
        return await self.send(_rollback_call(stream, to))

    async def reload(self) -> ReloadResponse:
        """Have the model loaded anew; it takes as long as reading and trying it out does."""
        return await self.send(_RELOAD_CALL)

    async def status(self) -> StatusResponse:
        """Read what is served and how it fares."""
        return await self.send(_STATUS_CALL)

    async def ready(self) -> bool:
        """Whether the service answers predictions now; False while nothing listens there."""
        try:
            await self.send(_READY_CALL)
        except ServiceError as error:
            if _means_not_ready(error):
                return False
            raise
        return True

    async def close(self) -> None:
        """Close the connections, each of them; the first that fails is told then."""
        closing, self._all, self._idle = self._all, [], []
        closed = await asyncio.gather(*(each.aclose() for each in closing), return_exceptions=True)
        for failed in filter(None, closed):
            raise failed

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
