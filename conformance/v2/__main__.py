"""`python -m conformance.v2 URL --model NAME`: ask a server, and print what it supports.

Exit status: 0 everything required holds, 1 it does not, 2 the server cannot be asked.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import httpx

from conformance.v2 import extensions, required, robustness
from conformance.v2.asking import CannotAsk, Kit, NotAsked
from conformance.v2.checks import INAPPLICABLE, NO, UNASKED, YES, Row, conforms, rows
from conformance.v2.server import Failed, Server
from conformance.v2.tensors import DATATYPES, Declared

CHECKS = (*required.CHECKS, *extensions.CHECKS, *robustness.CHECKS)
MARKS = {YES: "yes", NO: "NO", UNASKED: "-", INAPPLICABLE: "-"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit status."""
    options = _parser().parse_args(arguments)
    headers = {"User-Agent": "conformance.v2", "Accept-Encoding": "identity"}
    headers |= dict(options.header)
    if options.token:
        headers["Authorization"] = f"Bearer {options.token}"
    try:
        with httpx.Client(
            base_url=_url(options.url),
            headers=[(_sent(name), _sent(value)) for name, value in headers.items()],
            timeout=options.timeout,
            # Whoever ends a connection behind an answer has no part in what is asked next.
            limits=httpx.Limits(max_keepalive_connections=0),
        ) as client:
            kit = Kit(
                Server(client),
                options.model,
                given=tuple(options.input),
                side=options.dim,
                element=_element(options.bytes),
                parameters=options.parameters,
                tolerance=options.tolerance,
            )
            _contact(kit)
            found = rows(kit, CHECKS)
            printed = _print_json(found) if options.json else _print_lines(kit, found)
    except CannotAsk as error:
        print(f"conformance.v2: {error}", file=sys.stderr)
        return 2
    return 0 if conforms(printed) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m conformance.v2",
        description="Ask a server of the Open Inference Protocol V2 over HTTP what it supports. "
        "It sends the model inferences of its own making, good ones and bad ones: ask no server "
        "that others depend on.",
        epilog="Exit status: 0 everything required holds, 1 it does not, 2 it cannot be asked.",
    )
    add = parser.add_argument
    add("url", metavar="URL", help="such as http://127.0.0.1:8000; /v2 comes below it")
    add("--model", required=True, metavar="NAME", help="the model to ask for")
    add("--json", action="store_true", help="a JSON object a line")
    add("--token", help="sent as Authorization: Bearer TOKEN")
    add(
        "--header",
        type=_header,
        action="append",
        default=[],
        metavar="'NAME: VALUE'",
        help="sent with every request; may come several times",
    )
    add("--timeout", type=_positive, default=30.0, metavar="S", help="seconds a request (30)")
    add("--bytes", type=Path, metavar="FILE", help="what each element of BYTES is: an image, …")
    add("--dim", type=_size, metavar="N", help="size of dimensions of -1 (images: 32, others: 1)")
    add(
        "--input",
        type=_input,
        action="append",
        default=[],
        metavar="NAME:DATATYPE:N,N,…",
        help="an input to send in place of the metadata's; may come several times",
    )
    add(
        "--parameters",
        type=_object,
        default={},
        metavar="JSON",
        help="an object, sent as the parameters of every inference",
    )
    add(
        "--tolerance",
        type=_tolerance,
        default=1e-3,
        metavar="T",
        help="by how much numbers of two answers to the same input may differ (0.001); "
        "inf: only names, datatypes and shapes are held against each other",
    )
    return parser


def _contact(kit: Kit) -> None:
    """Find out whether there is a server with that model.

    Raises:
        CannotAsk: there is not; the text says what to do.
    """
    try:
        live = kit.server.get("/v2/health/live")
        model = kit.server.get(kit.path())
        shown = kit.server.shown
        inference = kit.send_content(b"{}")  # reading may be free where inferring is not
    except Failed as error:
        raise CannotAsk(f"There is no answer: {error}.") from None
    for answer in (live, model, inference):
        if answer.status in (401, 403):
            raise CannotAsk(f"The server {answer}. It wants a --token, or another one.")
    if 400 <= model.status < 500 and live.status == 404:
        raise CannotAsk(
            f"{shown} {model}, and /v2/health/live 404: there is no server of the "
            "Open Inference Protocol V2 at this URL."
        )
    if 400 <= model.status < 500:
        raise CannotAsk(f"The server has no model {kit.name!r}: it {model}.")


def _print_lines(kit: Kit, found: Iterable[Row]) -> list[Row]:
    printed: list[Row] = []
    print(f"model {kit.name}: {_signature(kit)}")
    for row in found:
        if not printed or printed[-1].group != row.group:
            print(f"\n{row.group}")
        print(f"  {MARKS[row.outcome]:4} {row.name:20} {row.feature}")
        if row.why:
            print(f"       {row.why}")
        if row.request:
            print(f"       {row.request}", flush=True)
        printed.append(row)
    groups = {row.group: None for row in printed}
    print()
    for group in groups:
        asked = [row for row in printed if row.group == group and row.outcome in (YES, NO)]
        print(f"{group}: {sum(row.outcome == YES for row in asked)} of {len(asked)}")
    return printed


def _print_json(found: Iterable[Row]) -> list[Row]:
    printed = []
    for row in found:
        print(json.dumps(dataclasses.asdict(row), ensure_ascii=False), flush=True)
        printed.append(row)
    return printed


def _signature(kit: Kit) -> str:
    try:
        inputs = [f"{each.name} {each.datatype} {list(each.shape)}" for each in kit.inputs]
        return f"sent {', '.join(inputs)}; metadata has {', '.join(map(str, kit.outputs))} out"
    except NotAsked as error:
        return str(error)


def _url(text: str) -> httpx.URL:
    try:
        url = httpx.URL((text if "://" in text else f"http://{text}").rstrip("/"))
    except httpx.InvalidURL as error:
        raise CannotAsk(f"{text!r} is no URL: {error}.") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise CannotAsk(f"{text!r} is no http:// or https:// URL.")
    return url


def _sent(text: str) -> bytes:
    """A header's name or value as it was typed, which may be no ASCII."""
    return text.encode(errors="surrogateescape")


def _element(path: Path | None) -> bytes:
    if path is None:
        return b"conformance"
    try:
        return path.read_bytes()
    except OSError as error:
        raise CannotAsk(f"--bytes {path} cannot be read: {error.strerror}.") from None


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is no 'NAME: VALUE'")
    return name.strip(), value.strip()


def _input(text: str) -> Declared:
    name, datatype, shape = [*text.rsplit(":", 2), "", ""][:3]
    sizes = [size.strip() for size in shape.split(",")]
    if datatype not in DATATYPES or not all(size.isdecimal() for size in sizes):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no NAME:DATATYPE:N,N,… with a datatype of {', '.join(DATATYPES)}"
        )
    return Declared(name, datatype, tuple(int(size) for size in sizes))


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object")
    return value


def _size(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def _positive(text: str) -> float:
    if not (number := _tolerance(text)) > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return number


def _tolerance(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not number >= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 on")
    return number


if __name__ == "__main__":
    try:
        status = main()
    except BrokenPipeError:  # as into head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)
