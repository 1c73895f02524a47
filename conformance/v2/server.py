"""A server that is asked over HTTP, and its answers, whatever they are made of."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import httpx

HEADER = "Inference-Header-Content-Length"
SHOWN_CHARACTERS = 400
TOLD_CHARACTERS = 160
# An array of more than six numbers or texts: its first four.
LONG_ARRAY = re.compile(r"(\[(?:[^][{},]*,){4})(?:[^][{},]*,){2,}[^][{},]*\]")


class Failed(Exception):
    """The server did otherwise than it was asked for; the text says what, in a line."""


@dataclass(frozen=True)
class Answer:
    """What came for a request."""

    status: int
    headers: httpx.Headers
    content: bytes

    def __str__(self) -> str:
        text = told(self.content.decode(errors="replace"))
        return f"answered {self.status}" + (f": {text}" if text else " without a body")

    def expect(self, status: int) -> "Answer":
        """Itself, or Failed where the status is another one."""
        if self.status != status:
            raise Failed(f"{self._redirected() or self}; {status} is due")
        return self

    def expect_refusal(self) -> "Answer":
        """Itself, or Failed where it is not a 4xx."""
        if not 400 <= self.status < 500:
            raise Failed(f"{self}; a 4xx is due")
        return self

    def expect_no_crash(self) -> "Answer":
        """Itself, or Failed where it is a 5xx."""
        if self.status >= 500:
            raise Failed(f"{self}; no 5xx is due")
        return self

    def parts(self) -> tuple[bytes, bytes]:
        """The body's JSON, and the bytes of tensors behind it."""
        length = self.headers.get(HEADER)
        if length is None:
            return self.content, b""
        if not (length.isascii() and length.isdigit()) or int(length) > len(self.content):
            raise Failed(
                f"{HEADER} of the answer is {told(length)}, it has {len(self.content)} bytes"
            )
        return self.content[: int(length)], self.content[int(length) :]

    def json(self) -> Any:
        """The body's JSON; NaN and Infinity are none."""

        def refuse(constant: str) -> NoReturn:
            raise Failed(f"the answer has {constant}, which JSON has not")

        try:
            return json.loads(self.parts()[0], parse_constant=refuse)
        except (ValueError, RecursionError):
            raise Failed(f"{self}; JSON is due") from None

    def object(self) -> dict[str, Any]:
        """The body's JSON, which is an object."""
        if not isinstance(value := self.json(), dict):
            raise Failed(f"{self}; a JSON object is due")
        return value

    def _redirected(self) -> str | None:
        place = self.headers.get("location")
        return f"answered {self.status}, a redirect to {told(place)}" if place else None


class Server:
    """A server that is asked; `shown` is its last request as a curl command."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self.shown = ""

    def send(
        self,
        method: str,
        path: str,
        content: bytes | Sequence[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send a request; a sequence goes in chunks.

        Raises:
            Failed: no answer came.
        """
        headers = dict(headers or {})
        if content is None or isinstance(content, bytes):
            self.shown = self._curl(method, path, content or b"", headers)
            body: bytes | Iterator[bytes] | None = content
        else:
            chunked = {**headers, "Transfer-Encoding": "chunked"}
            self.shown = self._curl(method, path, b"".join(content), chunked)
            body = iter(content)
        try:
            response = self._client.request(method, path, content=body, headers=headers)
        except httpx.TimeoutException:
            raise Failed(f"no answer within {self._client.timeout.read:g} s") from None
        except httpx.ConnectError as error:
            raise Failed(f"takes no connection ({error})") from None
        except httpx.HTTPError as error:
            raise Failed(f"ended the connection without an answer: {error}") from None
        return Answer(response.status_code, response.headers, response.content)

    def get(self, path: str) -> Answer:
        return self.send("GET", path)

    def _curl(self, method: str, path: str, content: bytes, headers: Mapping[str, str]) -> str:
        words = ["curl", "-s"]
        if method != "GET":
            words += ["-X", method]
        for name, value in headers.items():
            words += ["-H", f"{name}: {value}"]
        if content:
            words += ["--data-binary", _shortened(content, headers.get(HEADER, ""))]
        return shlex.join([*words, str(self._client.base_url).rstrip("/") + path])


def told(value: object) -> str:
    """What a server sent, in a line that a terminal can show."""
    text = " ".join(str(value).split())
    text = text if len(text) <= TOLD_CHARACTERS else f"{text[:TOLD_CHARACTERS]}…"
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def _shortened(content: bytes, header: str) -> str:
    """A body as text: long arrays cut, and what is no text told as a number of bytes."""
    json_end = int(header) if header.isascii() and header.isdigit() else len(content)
    text = content[:json_end].decode(errors="surrogateescape")  # surrogates are not printable
    end = next((place for place, each in enumerate(text) if not each.isprintable()), len(text))
    behind = len(content) - len(text[:end].encode())
    text = LONG_ARRAY.sub(r"\1…]", text[:end])
    if len(text) > SHOWN_CHARACTERS:
        text = f"{text[:SHOWN_CHARACTERS]}… ({len(content) - behind} bytes)"
    return f"{text}<{behind} bytes>" if behind else text
