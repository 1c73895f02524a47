"""A replay meets servers that are odd, restarted or gone: a sentence, and what came is kept."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.responses import (
    HTMLResponse,
    JSONResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)

from service.client import ServiceError
from service.replay import ReplayPlan
from service.replay.load import LONGEST_RETRY_WAIT, retry_wait
from tests.fixtures.fake_service import plain_view, run
from ttc_core.rows import Rows, asked_images


def plan(fake: Any, data: str, **options: Any) -> ReplayPlan:
    return ReplayPlan(data, url=fake.url, batch_size=5, **options)


def changed(**fields: Any) -> Any:
    return lambda answer: JSONResponse(answer | fields)


def each(**fields: Any) -> Any:
    return lambda answer: JSONResponse(
        answer | {"predictions": [one | fields for one in answer["predictions"]]}
    )


def drops(_: dict) -> Response:
    def slowly() -> Iterator[bytes]:
        while True:
            yield b" "
            time.sleep(0.02)

    return StreamingResponse(slowly())


def cut_off(answer: dict) -> Response:
    return Response(b"{", headers={"Content-Length": "1000"})


ODD = {
    "html": lambda _: HTMLResponse("<html>Welcome to nginx!</html>"),
    "nothing": lambda _: Response(b""),
    "other-json": lambda _: JSONResponse([1, 2]),
    "too-few": lambda a: JSONResponse(a | {"predictions": a["predictions"][:3]}),
    "too-many": lambda a: JSONResponse(a | {"predictions": a["predictions"] * 2}),
    "none": changed(predictions=[]),
    "versions": changed(version=[1, 2]),
    "huge-version": changed(version=10**30),
    "negative-version": changed(version=-3),
    "huge-class": each(**{"class": 10**30}),
    "negative-class": each(**{"class": -1}),
    "text-class": each(**{"class": "cat"}),
    "no-confidence": each(confidence="nan"),
    "redirect": lambda _: RedirectResponse("http://127.0.0.1:9/elsewhere"),
    "itself": lambda _: RedirectResponse("/predict"),
    "false-gzip": lambda _: Response(b"no gzip", headers={"Content-Encoding": "gzip"}),
    "not-utf8": lambda _: Response(b"\xff\xfe", media_type="application/json"),
    "empty-error": lambda _: Response(b"", 500),
    "odd-error": lambda _: JSONResponse({"detail": [{"loc": 1}]}, 502),
    "not-ours": lambda _: JSONResponse({"error": "no such route"}, 404),
    "in-drops": drops,
    "cut-off": cut_off,
}


def patience(odd: Callable[[dict], Response]) -> float:
    """Seconds to wait for an answer: few only where it is the waiting that is tried."""
    return 1.5 if odd is drops else 30


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_nonsense_ends_lockstep_with_a_sentence_and_keeps_the_finished_rows(odd, fake, data):
    """The corruption before it is a row; the one in hand is none."""
    rows = Rows(None)

    def later(number: int) -> None:
        if number > 5:  # the second corruption
            fake.odd = odd

    fake.on_request = later
    with pytest.raises(ServiceError) as failed:
        run(plan(fake, data, corruptions=("clean", "fog"), timeout=patience(odd)), rows)
    assert 10 < len(str(failed.value)) < 500
    assert [row["corruption"] for row in rows] == ["clean"]


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_nonsense_under_load_is_counted_and_the_rest_goes_on(odd, fake, data):
    """Images of which nothing came are no answers, and the row says how many were asked."""

    def second(number: int) -> None:
        fake.odd = odd if number == 2 else None

    fake.on_request = second
    view, screen = plain_view()
    (row,) = run(plan(fake, data, mode="closed", timeout=patience(odd)), view=view)
    assert (row["images"], row["asked"], asked_images(row)) == (20, 25, 25)
    assert sum(row["errors"].values()) == 5
    assert row["accuracy"] == row["correct"] / 20
    assert "5 of 25 images have no answer" in screen.getvalue()


def test_a_server_that_fails_for_ever_gives_a_row_of_no_answers(fake, data):
    """It has no accuracy, so no table shows it."""
    fake.odd = ODD["empty-error"]
    (row,) = run(plan(fake, data, mode="closed"))
    assert (row["images"], row["asked"], row["accuracy"]) == (0, 25, None)


def test_a_server_that_is_gone_at_the_end_costs_no_answer(fake, data, monkeypatch):
    """What it counted is missing; what it answered is kept."""
    asked = []
    status = fake.status

    async def gone() -> Any:
        asked.append(1)
        return JSONResponse({"detail": "Gone."}, 404) if len(asked) > 2 else await status()

    for route in fake.app.router.routes:
        if getattr(route, "path", "") == "/status":
            monkeypatch.setattr(route.dependant, "call", gone)
    view, screen = plain_view()
    (row,) = run(plan(fake, data), view=view)
    assert (row["images"], row["steps"]) == (25, None)
    assert "counters are missing" in screen.getvalue()


def test_a_server_that_is_restarted_midway_is_seen(fake, data):
    """Its counters begin anew; the row says so, and no table takes it for one state's."""
    run(plan(fake, data))

    def restart(number: int) -> None:
        if number == 8:
            for name in fake.counters:
                fake.counters[name] = 0.0

    fake.on_request = restart
    view, screen = plain_view()
    (row,) = run(plan(fake, data), view=view)
    assert (row["images"], row["restarted"], row["steps"]) == (25, True, None)
    assert "started anew" in screen.getvalue()


@pytest.mark.parametrize(
    ("asked", "waited"),
    [
        (None, 1.0),
        (0.0, 1.0),
        (-5.0, 1.0),
        (math.nan, 1.0),
        (2.5, 2.5),
        (1e9, LONGEST_RETRY_WAIT),
        (math.inf, LONGEST_RETRY_WAIT),
    ],
)
def test_retry_after_is_kept_in_bounds(asked, waited):
    """Neither at once ten times, nor next year."""
    assert retry_wait(asked) == waited


@pytest.mark.parametrize("header", ["-1", "nan", "Wed, 21 Oct 2015 07:28:00 GMT", "soon", "1e999"])
def test_an_absurd_retry_after_loses_no_image(header, fake, data, monkeypatch):
    """The request is sent again."""
    waits: list[float | None] = []
    monkeypatch.setattr("service.replay.load.retry_wait", lambda asked: waits.append(asked) or 0.0)
    fake.refusals.append((429, header))
    (row,) = run(plan(fake, data))
    assert (row["images"], row["retries"], len(waits)) == (25, 1, 1)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1",
        "http://127.0.0.1:0",
        "http://[::1]:1",
        "http://nowhere.invalid",
        "http://" + "a" * 300 + ".invalid",
        "http://xn--zzzz-.invalid",
        "http://..",
        "http://user:password@127.0.0.1:1",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:1/?x=y",
        "http://127.0.0.1:1/#x",
        "http://[::1",
    ],
    ids=lambda url: url[:30],
)
def test_a_url_where_nothing_is_gives_a_sentence(url, data):
    """Whatever kind of nothing."""
    with pytest.raises((ServiceError, ValueError), match=r".{10,}"):
        run(ReplayPlan(data, url=url, timeout=2))


def test_what_came_before_is_in_the_row(fake, data):
    """A continual replay's history: its own corruptions, and what the stream saw before it."""
    fake.seen["default"] = {
        **{"version": 3, "images": 70, "batches": 7, "pending_batches": 0, "drift": 0.1}
    }
    first, second = run(plan(fake, data, corruptions=("clean", "fog"), severity=3))
    assert (first["after"], second["after"]) == ([], ["clean"])
    assert first["after_severity"] == second["after_severity"] == 3
    assert first["after_images"] == second["after_images"] == 70
    assert "after" not in run(plan(fake, data, reset_between=True))[0]


def test_a_row_tells_whose_weights_and_which_images(fake, data):
    """As those of `evaluate` do."""
    (row,) = run(plan(fake, data))
    assert row["model_digest"] == "0123456789abcdef"
    assert len(row["data_digest"]) == 16
    assert row["device"] == "cpu"


def test_predictions_are_written_whole_or_not_at_all(fake, data, tmp_path, monkeypatch):
    """A full disk leaves the earlier file as it was, and no part of another."""
    path = tmp_path / "predictions.npz"
    path.write_bytes(b"earlier")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="No space left"):
        run(plan(fake, data), predictions=path)
    assert [each.name for each in tmp_path.iterdir()] == ["predictions.npz"]
    assert path.read_bytes() == b"earlier"
