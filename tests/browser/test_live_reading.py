"""What an operator reads on the live page where something is rare: told by a test, or by itself."""

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from service.launch import Launched
from service.live.assets import Page
from tests.e2e.conftest import sample, wait_for
from tests.fixtures.forked import launch
from tests.fixtures.live_page import camera, drop, pictures, row, state
from tests.fixtures.proxy import behind_proxy

ENDED = r"ERR_|503"
TOKEN = "for-everything-1"


@pytest.fixture(scope="module")
def server() -> Iterator[Launched]:
    """It has no camera of its own."""
    with launch("--method", "source", "--threads", "1", "--token-reads", "--token", TOKEN) as it:
        yield it


def estimated(gain: float) -> dict[str, dict[str, float]]:
    """By how much adapting is better, and surely so."""
    shares = {"adapted": 0.5 + gain, "source": 0.5, "gain": gain}
    return {
        name: {"accuracy": share, "low": share - 0.1, "high": share + 0.1}
        for name, share in shares.items()
    }


BETTER, WORSE = estimated(0.3), estimated(-0.3)


@pytest.fixture
def told(open_live, server) -> Callable[..., Any]:
    """Opens the page as it is when the server tells these frames, and ends; `page.tell` has it told
    others the next time it asks, which it does by itself."""

    def opened(*frames: tuple[str, dict[str, Any]], **options: Any) -> Any:
        page = open_live(server.url, ready="", **{"forgiven": "401", **options})
        said: list[tuple[str, dict[str, Any]]] = []
        page.tell = lambda *frames: said.__setitem__(slice(None), frames)
        page.tell(*frames)
        page.route(
            "**/events",
            lambda route: route.fulfill(
                body="".join(
                    f"event: {kind}\ndata: {json.dumps(frame)}\n\n" for kind, frame in said
                ),
                content_type="text/event-stream",
            ),
        )
        page.reload()
        return page

    return opened


def module(stem: str) -> str:
    """The name under which one of the page's modules is sent."""
    (name,) = (each for each in Page().assets if re.fullmatch(rf"{stem}\.\w+\.js", each))
    return f"./assets/{name}"


# The three sentences

LONG_AGO = 1000.0
HARM = {"time": LONG_AGO, "action": "hold", "reason": "harm"}
BY_HAND = {"time": LONG_AGO + 5, "action": "reset", "reason": "by_hand"}
SENTENCES = [
    # A camera that is silent need not be in memory.
    ("alive", [camera("a"), camera("b"), camera("c", in_memory=False, silent_since=1.0)], {},
     r"warn 2 of 3 cameras are well: c is silent\."),
    ("alive", [camera(n, in_memory=False, silent_since=1.0) for n in "abc"], {},
     r"warn 0 of 3 cameras are well: a, b and 1 more are silent\."),
    # Nobody says so of one that was heard of long ago, or is only known from a file.
    ("alive", [camera("a"), camera("b", last_image=LONG_AGO)], {},
     r"info 1 of 2 cameras is well: b has sent nothing of late\."),
    ("alive", [camera("a", in_memory=False, last_image=None)], {},
     r"info 0 of 1 camera are well: a has sent nothing of late\."),
    ("alive", [camera("a"), camera("b", suspect="black")], {},
     r"warn 1 of 2 cameras is well: b sends faulty frames \(black\)\."),
    ("alive", [camera("a")], {"left_out": 41}, r"ok All 42 cameras are alive\."),
    # One among many is named, and does not speak for all.
    ("helping", [camera(n, estimate=WORSE if n == "h" else BETTER) for n in "abch"], {},
     r"warn Adapting helps, but does harm at h\. .*70\s% right, frozen 60\s%: \+10\.0 points"),
    ("helping", [camera("a", estimate=WORSE), camera("b", estimate=WORSE)], {},
     r"bad Adapting does harm\."),
    ("helping", [camera("a", estimate=BETTER), camera("b", mode="held", estimate=WORSE)], {},
     r"ok Adapting helps\. .*1 held camera not counted"),
    ("helping", [camera("b", mode="held", estimate=WORSE)],
     {"gauges": {"estimated_adapted": None, "estimated_source": None}},
     r"bad Adapting does harm wherever it was compared\. 1 held camera not counted\."),
    # What was done by hand is not the guard's.
    ("guarded", [camera("a", guard=HARM), camera("b", guard=BY_HAND)],
     {"counters": {"guard_actions": 3}},
     r"ok The guard holds no camera now\. 3 acts since the start\. a, .* ago: has the frozen"),
    ("guarded", [camera("b", guard=BY_HAND)], {}, r"ok The guard had nothing to do\."),
    ("guarded", [camera("a", mode="held", guard=HARM)], {}, r"held The guard holds a: "),
    ("guarded", [camera("a", doubted_since=1.0)], {"guard": "observe"},
     r"warn The guard doubts a\. It only observes\."),
]  # fmt: skip


def test_the_sentences_are_true_in_every_state(told):
    """Whatever cameras there are; one said in the present of what is past would be worse than
    none."""
    page = told(("state", state()))
    page.wait_for_selector("body[data-live]", state="attached")
    said = page.evaluate(
        """async ([live, headline, cases]) => {
          const { Live } = await import(live);
          const sentences = await import(headline);
          return cases.map(([question, state]) => {
            const live = new Live();
            live.begin(state);
            const { icon, text, more } = sentences[question](live);
            return `${icon} ${text} ${more}`;
          });
        }""",
        [
            module("state"),
            module("headline"),
            [(question, state(*rows, **changed)) for question, rows, changed, _ in SENTENCES],
        ],
    )
    for (_, _, _, expected), found in zip(SENTENCES, said, strict=True):
        assert re.match(expected, found), f"{expected}: {found}"


# Rows that move, and what somebody is at


def test_rows_wait_for_whoever_points_at_them_and_not_for_a_pointer(told):
    """Those in trouble come to the top again ten seconds after the pointer, or a key, moved last;
    the focus stays where it is."""
    page = told(("state", state(camera("a"), camera("b"))))
    row(page, "a").hover()
    row(page, "b").get_by_role("button", name="Reset").focus()
    page.tell(("state", state(camera("a"), camera("b", trouble=3, mode="held"))))
    page.wait_for_selector("#streams [data-name=b][data-trouble='3']")
    names = "[...document.querySelectorAll('#streams tr')].map(row => row.dataset.name).join('')"
    assert page.evaluate(names) == "ab"
    page.evaluate(
        "(now => { performance.now = () => now() + 11_000 })(performance.now.bind(performance))"
    )
    page.wait_for_function(f"() => {names} === 'ba'")
    assert page.evaluate("document.activeElement.closest('tr')?.dataset.name") == "b"


def test_the_focus_does_not_fall_out_of_a_row_that_goes(told):
    """It goes to the table: the next Tab is not the page's first."""
    page = told(("state", state(camera("a"), camera("b"))))
    row(page, "a").get_by_role("button", name="Reset").focus()
    page.tell(("state", state(camera("b"))))
    row(page, "a").wait_for(state="detached")
    assert page.evaluate("document.activeElement.id") == "cameras"


def test_tables_grow_and_their_lines_stay(open_live, server):
    """Who reads one, or has marked a number, is not thrown out every five seconds; a number under
    the pointer has its time beside it."""
    page = open_with_token(open_live, server)
    page.click("#curve-images summary")
    page.wait_for_selector("#curve-images tbody tr")
    page.evaluate(
        """() => { window.kept = ["#curve-images tbody", "#happenings"].map(
             place => document.querySelector(place).firstElementChild) }"""
    )
    many = page.locator("#curve-images tbody tr").count()
    page.locator("#curve-images .plot").hover()
    page.wait_for_function(
        "many => document.querySelectorAll('#curve-images tbody tr').length > many", arg=many
    )
    assert page.evaluate("window.kept.every(each => each.isConnected)")
    assert re.search(r", at \d\d:\d\d:\d\d$", page.locator("#curve-images .unit").inner_text())


def open_with_token(open_live: Any, server: Launched) -> Any:
    page = open_live(server.url, ready="", forgiven=f"401|{ENDED}")
    page.fill("#token", TOKEN)
    page.keyboard.press("Enter")
    page.wait_for_selector("body[data-live]", state="attached")
    return page


def test_a_flood_of_acts_is_a_sentence_now_and_then(told):
    """Not one a second into a screen reader's ear."""
    acts = [
        ("tick", state(events=[
            {"time": time.time(), "event": "guard", "stream": f"camera-{number}", **HARM}
        ])) for number in range(30)
    ]  # fmt: skip
    page = told()
    page.add_init_script(
        """addEventListener("DOMContentLoaded", () => {
          window.said = [];
          const place = document.querySelector("#announced");
          const seen = new MutationObserver(() => said.push(place.textContent));
          seen.observe(place, { childList: true });
        })"""
    )
    page.tell(("state", state()), *acts)
    page.reload()
    page.get_by_text("Connection lost").wait_for()
    page.wait_for_timeout(500)
    assert len([each for each in page.evaluate("said") if "camera-" in each]) <= 1
    page.wait_for_function("() => said.some(each => each.includes('acts of the guard'))")


# Questions that overlap


def test_an_answer_is_shown_to_the_picture_that_it_is_of(open_live, server):
    """Of two pictures in a row the last, whichever answer comes first."""
    page = open_with_token(open_live, server)
    held: list[Any] = []
    page.route("**/predict?stream=first*", lambda route: held.append(route))
    image = pictures("clean", 1)[0][0]
    for stream in ("first", "second"):
        page.fill("#try-stream", stream)
        drop(page, image)
    page.get_by_text("0 of second").wait_for()
    with page.expect_response("**/predict?stream=first*"):
        held[0].continue_()
    page.wait_for_timeout(200)
    assert page.locator("#answer-version").inner_text() == "0 of second"


def test_an_answer_to_a_question_that_was_closed_closes_no_other(told):
    """Reset a, given up; then the question about b stands."""
    page = told(("state", state(camera("a"), camera("b"))), forgiven=f"401|{ENDED}|404")
    held: list[Any] = []
    page.route("**/reset?stream=a", lambda route: held.append(route))
    row(page, "a").get_by_role("button", name="Reset").click()
    page.click("#act-do")
    page.keyboard.press("Escape")
    row(page, "b").get_by_role("button", name="Reset").click()
    held[0].fulfill(json={})
    page.get_by_text("a was reset.").wait_for(state="attached")
    assert page.locator("#act-dialog").is_visible()
    assert page.locator("#act-do").is_enabled()


def test_a_token_is_kept_for_its_path_alone(open_live, server):
    """Behind one proxy there may be another service, which is not to get it."""
    with behind_proxy(server.url, "/north", "/south") as address:
        page = open_live(address, ready="", forgiven=f"401|{ENDED}", beside="/south")
        page.fill("#token", TOKEN)
        page.keyboard.press("Enter")
        page.wait_for_selector("body[data-live]", state="attached")
        sent: list[str | None] = []
        page.on("request", lambda request: sent.append(request.headers.get("authorization")))
        page.goto(address.replace("/north", "/south/"))
        page.wait_for_selector("#token-dialog[open]")
        assert set(sent) == {None}


# The connection


def test_a_tab_that_nobody_sees_holds_no_connection(open_live, server):
    """A browser opens six to a server; the seventh tab would be told nothing. Once it is seen it
    goes on, and was never lost."""
    page = open_with_token(open_live, server)
    see = """hidden => {
      Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
      document.dispatchEvent(new Event("visibilitychange"));
    }"""
    page.evaluate(
        """() => {
          const after = setTimeout;
          window.setTimeout = (call, time) => after(call, time === 30_000 ? 100 : time);
        }"""
    )
    wait_for(lambda: readers(server) == 1)  # a former test's page may still be going
    page.evaluate(see, True)
    wait_for(lambda: readers(server) == 0)
    assert page.locator("#connection").get_attribute("data-state") == "on"
    page.evaluate(see, False)
    wait_for(lambda: readers(server) == 1)


def readers(server: Launched) -> float:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    return sample(httpx.get(f"{server.url}/metrics", headers=headers).text, "ttc_live_readers")


def test_a_fault_of_the_page_is_not_told_as_the_lines(told):
    """Nor kept from whoever looks for it."""
    page = told(("state", {"time": 1.0}), forgiven="401|TypeError|undefined")
    page.get_by_text("This page could not show what came.").wait_for()


def test_a_page_that_is_old_says_so(told):
    """The server was upgraded while a tab was open."""
    page = told(("state", state()))
    page.wait_for_selector("body[data-live]", state="attached")
    assert page.locator("#old-page").is_hidden()
    page.tell(("state", state(page="second")))
    page.locator("#old-page").wait_for()
    page.click("#load-page")
    page.wait_for_selector("body[data-live]", state="attached")
    assert page.locator("#old-page").is_hidden()


# In bounds


def test_a_clock_that_is_set_back_stops_no_curve(told):
    """Times only grow from left to right, and points go on at once."""
    page = told(("state", state()))
    page.wait_for_selector("body[data-live]", state="attached")
    before, times, recent, rates = page.evaluate(
        """async ([name, first]) => {
          const { Live } = await import(name);
          const live = new Live();
          const times = () => live.points.map(({ time }) => time);
          live.begin({ ...first, time: 4000, history: { time: [5000, 5005, 5010, 3990, 3995] } });
          const before = times();
          for (let second = 1; second <= 200; second++)
            live.take({ time: (second <= 100 ? 4000 : 400) + second, counters: {}, gauges: {},
              events: [], streams: [{ name: "a", images: second, trouble: 0 }] });
          return [before, times(), live.recent.length, live.rates("a")];
        }""",
        [module("state"), state()],
    )
    assert before == [3990, 3995, 4000]
    assert times == list(range(501, 601, 5))
    assert recent <= 7
    assert rates == [pytest.approx(1)] * 19


def test_a_day_leaves_the_page_as_level_as_a_minute(told):
    """Points, events, rows and what is kept of each camera have bounds; a day's ticks pass them."""
    page = told(("state", state()))
    page.wait_for_selector("body[data-live]", state="attached")
    sizes = page.evaluate(
        """async name => {
          const { Live } = await import(name);
          const live = new Live();
          const row = (number, time) => ({ name: `camera-${number}`, images: time, trouble: 0 });
          const counters = { images: 0 };
          live.begin({ time: 0, started: 0, interval: 5, history: {}, counters, gauges: {},
            events: [], streams: [], model: {}, asks: {} });
          for (let time = 1; time <= 86400; time++) {
            const streams = [row(time % 300, time), row(0, time)];
            live.take({ time, counters: { images: time }, gauges: {}, streams,
              events: time % 10 ? [] : [{ time, event: "guard" }, { time, event: "evicted" }] });
          }
          const samples = [...live.samples.values()].map(({ kept }) => kept.length);
          const streams = Array.from({ length: 5000 }, (_, number) => row(number, 86405));
          live.take({ time: 86405, counters, gauges: {}, streams, events: [] });
          return { points: live.points.length, recent: live.recent.length, rows: live.rows.size,
            events: live.events.length, streams: live.samples.size, samples: Math.max(...samples) };
        }""",
        module("state"),
    )
    assert sizes["points"] == 720
    assert sizes["recent"] <= 7
    assert sizes["events"] == 400
    assert sizes["rows"] <= 2000
    assert sizes["streams"] <= 2000
    assert sizes["samples"] == 60
