"""The live page as an operator has it: from a real server, in a real browser, and nothing else."""

import json
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from service.client import Client
from service.launch import Launched
from service.replay import to_png
from tests.fixtures.forked import launch
from tests.fixtures.live_page import (
    NARROW,
    WIDE,
    camera,
    drop,
    fits,
    pictures,
    row,
    send,
    state,
)
from tests.fixtures.proxy import behind_proxy

# TTC follows a stream of one class until it answers nothing else: the guard has that stream held.
HELD = ("--method", "ttc", "--guard", "on", "--adapt", "always")
LOST = r"ERR_CONNECTION_REFUSED|ERR_INCOMPLETE_CHUNKED_ENCODING|ERR_CONNECTION_RESET|status of 503"


@pytest.fixture(scope="module")
def server() -> Iterator[Launched]:
    """Four cameras: one with labels, one in fog, one that is held, one whose frames are black."""
    with launch(*HELD, "--threads", "1") as running:
        images, labels = pictures("gaussian_noise", 40)
        with Client(running.url) as client:
            client.predict(images, stream="gate-1", labels=labels)
        send(running.url, "gate-2", pictures("fog", 20)[0])
        hold(running.url, "dock")
        send(running.url, "yard", pictures("clean", 10)[0][:3] + black(10))
        yield running


def black(count: int) -> list[bytes]:
    return [to_png(np.zeros((32, 32, 3), np.uint8))] * count


def hold(url: str, name: str) -> None:
    """Send a camera's images of one class until the guard has the source answer."""
    images, _ = pictures("clean", 400, order="one:1")
    with Client(url) as client:
        for at in range(0, 400, 10):
            answer = client.predict(images[at : at + 10], stream=name)
            if answer.predictions[-1].mode == "held":
                return
    raise AssertionError("the guard held nothing")


# What is seen at once


def test_three_questions_are_answered_at_once(open_live, server):
    """Which camera is not alive, whether adapting helps, whom the guard holds: in words, above all
    else, on the first screen."""
    page = open_live(server.url)
    row(page, "dock").wait_for()
    for question, pattern in {
        "alive": r"Is each camera alive\?.*yard.* faulty frames.*black",
        "helping": r"Is adapting helping\?.*(help|harm|difference).*\d+\s% right, frozen \d+\s%",
        "guarded": r"What did the guard do\?.*The guard holds dock",
    }.items():
        line = page.locator(f"#{question}")
        assert re.search(pattern, line.inner_text(), re.DOTALL), line.inner_text()
        assert line.locator("svg.icon use").count() == 1
        box = line.bounding_box()
        assert box["y"] + box["height"] < WIDE["height"] / 2
    assert "of 40 labelled" in page.locator("#helping").inner_text()


def test_each_camera_has_a_row_that_says_how_it_is(open_live, server):
    """Its state in words with an icon, what is estimated with the interval, what labels say; who
    is in trouble stands above."""
    page = open_live(server.url)
    names = page.locator("#streams th").all_inner_texts()
    assert set(names) == {"gate-1", "gate-2", "dock", "yard"}
    assert {*names[:2]} == {"dock", "yard"}
    assert "held" in row(page, "dock").locator(".state").inner_text()
    assert row(page, "dock").locator(".state .icon-held").count() == 1
    assert "black" in row(page, "yard").inner_text()
    cells = row(page, "gate-1").locator("td").all_inner_texts()
    assert "adapting" in cells[0]
    assert re.fullmatch(r"\d+ (s|min)", cells[1])
    assert cells[4] == "40"
    for estimated in cells[7:9]:
        assert re.fullmatch(r"\d+\.\d\s%\s+\d+ to \d+", estimated), estimated
    assert re.fullmatch(r"[+−±]\d+\.\d\s+[+−±]\d+\.\d to [+−±]\d+\.\d", cells[9]), cells[9]
    assert re.fullmatch(r"\d+\.\d\s%\s+of 40", cells[10]), cells[10]


def test_a_replay_moves_curves_and_rows(open_live, server):
    """Counts in the row, a point in every curve, and the age that falls: while images come."""
    page = open_live(server.url)
    ended = threading.Event()
    images, _ = pictures("contrast", 50)

    def replay() -> None:
        while not ended.is_set():
            send(server.url, "replayed", images[:20], size=5)

    thread = threading.Thread(target=replay)
    thread.start()
    try:
        line = row(page, "replayed")
        line.wait_for()
        before = int(line.locator("td").nth(4).inner_text().replace(",", ""))
        page.wait_for_function(
            """before => {
              const cells = document.querySelectorAll("#streams tr[data-name=replayed] td");
              const count = Number(cells[4].textContent.replace(",", ""));
              const moves = cells[3].querySelector("polyline").getAttribute("points").includes(" ");
              return count > before && Number(cells[2].textContent) > 0 && moves;
            }""",
            arg=before,
        )
        page.locator("#curve-images summary").click()
        rows = page.locator("#curve-images tbody tr")
        many = rows.count()
        page.wait_for_function(
            "many => document.querySelectorAll('#curve-images tbody tr').length > many", arg=many
        )
        for curve in ("images", "latency", "entropy", "selection"):
            told = page.locator(f"#curve-{curve} figcaption b").first.inner_text()
            assert float(told.replace(",", "")) > 0, curve
        said = page.locator("#curve-latency .plot").get_attribute("aria-label")
        assert re.search(r"p50: now \d.*p99: now \d", said), said
        assert drawn(page, "#curve-images canvas")
    finally:
        ended.set()
        thread.join()


def drawn(page, canvas: str) -> bool:
    """Whether a curve's colour is on its canvas."""
    return page.eval_on_selector(
        canvas,
        """canvas => {
          const style = getComputedStyle(document.documentElement);
          const ink = style.getPropertyValue("--line-1").trim();
          const wanted = [1, 3, 5].map(at => parseInt(ink.slice(at, at + 2), 16));
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          for (let at = 0; at < data.length; at += 4)
            if (wanted.every((part, index) => Math.abs(data[at + index] - part) < 12)) return true;
          return false;
        }""",
    )


def test_a_guard_event_appears_while_one_looks(open_live, server):
    """In its row, in the sentence, among what happened, and marked on every curve."""
    page = open_live(server.url)
    hold(server.url, "ramp")
    page.wait_for_selector("#streams tr[data-name=ramp] .icon-held")
    assert "ramp" in page.locator("#guarded").inner_text()
    event = page.locator("#happenings tr", has_text="ramp").first
    assert event.locator(".mark").inner_text().strip() == "G"
    assert "guard" in event.inner_text()
    page.wait_for_function(
        """() => [...document.querySelectorAll(".plot")].every(
          plot => plot.getAttribute("aria-label").includes("events marked"))"""
    )
    assert "ramp" in page.locator("#announced").inner_text()


# An image of one's own


def facts(page) -> dict[str, str]:
    terms = page.locator("#answer dt").all_inner_texts()
    return dict(zip(terms, page.locator("#answer dd").all_inner_texts(), strict=True))


def test_a_dropped_image_is_answered(open_live, server):
    """Five classes with bars as long as their numbers say; entropy, mode, whether it taught the
    model, version and weights; and nothing is learned unless that was chosen."""
    page = open_live(server.url)
    image = pictures("gaussian_noise", 1)[0][0]
    with Client(server.url) as client:
        best = client.predict([image], stream="page", learn=False).predictions[0]
        digest = client.status().model.digest
        drop(page, image)
        page.wait_for_selector("#answer:not([hidden])")
        assert page.locator("#scores th").count() == 5
        assert page.locator("#scores th").first.inner_text() == best.name
        shares = [float(t[:-2]) / 100 for t in page.locator("#scores .number").all_inner_texts()]
        assert shares == sorted(shares, reverse=True)
        assert shares[0] == pytest.approx(best.confidence, abs=0.001)
        widths = page.locator("#scores .bar").evaluate_all(
            "bars => bars.map(bar => parseFloat(bar.style.width) / 100)"
        )
        assert widths == pytest.approx(shares, abs=0.001)
        told = facts(page)
        assert told["Entropy"].startswith(f"{best.entropy:.3f} nats of at most 2.30")
        assert told["Taught the model"] == "no, it was only to be answered"
        assert told["Answered by"].startswith("adapting")
        assert (told["Suspect"], told["Weights"]) == ("no", digest)
        assert told["Version"] == "0 of page"
        assert "page" not in client.status().streams

        page.check("#learn")
        with page.expect_file_chooser() as chooser:
            page.click("#choose")
        chooser.value.set_files([{"name": "shoe.png", "mimeType": "image/png", "buffer": image}])
        page.wait_for_function(
            "() => !document.querySelector('#answer-taught').textContent.includes('only')"
        )
        assert facts(page)["Taught the model"] in ("yes", "no, it was not selected")


def test_what_is_no_image_is_refused_with_a_sentence(open_live, server):
    """The server's own; the answer before is not left standing beside it."""
    page = open_live(server.url, forgiven=r"status of 4\d\d")
    drop(page, b"this is no image")
    page.wait_for_function("() => document.querySelector('#try-error').textContent")
    assert "image" in page.locator("#try-error").inner_text()
    assert page.locator("#answer").is_hidden()


def test_the_camera_of_this_machine_is_asked_about(open_live, server):
    """Once, then every second until it is stopped."""
    page = open_live(server.url)
    page.click("#use-camera")
    page.wait_for_function("() => document.querySelector('#video').videoWidth > 0")
    page.click("#take-picture")
    page.wait_for_selector("#answer:not([hidden])")
    assert page.eval_on_selector("#picture", "image => image.naturalWidth") == 640
    page.check("#again")
    first = page.get_attribute("#picture", "src")
    page.wait_for_function("first => document.querySelector('#picture').src !== first", arg=first)
    page.uncheck("#again")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(1200)
    assert [url for url in asked if "/predict" in url] == []
    page.click("#use-camera")
    assert page.locator("#camera").is_hidden()
    assert not page.is_checked("#again")


# Reset, roll back, tokens


def test_a_stream_is_reset_only_once_that_is_confirmed(open_live, server):
    """By keyboard: the dialog has the focus, Escape leaves all as it was."""
    send(server.url, "to-reset", pictures("fog", 20)[0])
    page = open_live(server.url)
    button = row(page, "to-reset").get_by_role("button", name="Reset to-reset")
    with Client(server.url) as client:
        button.focus()
        page.keyboard.press("Enter")
        page.wait_for_selector("#act-dialog[open]")
        assert page.evaluate("document.activeElement.closest('dialog')?.id") == "act-dialog"
        for _ in range(4):
            page.keyboard.press("Tab")
            assert page.evaluate(
                "document.activeElement === document.body || "
                "document.activeElement.closest('dialog') !== null"
            )
        page.keyboard.press("Escape")
        page.wait_for_selector("#act-dialog", state="hidden")
        assert page.evaluate("document.activeElement.value") == "reset"
        assert client.status().streams["to-reset"].images == 20

        page.keyboard.press("Enter")
        page.click("#act-do")
        page.wait_for_selector("#act-dialog", state="hidden")
        assert "to-reset" not in client.status().streams
    row(page, "to-reset").wait_for(state="detached")
    event = page.locator("#happenings tr", has_text="to-reset").first
    event.get_by_text("Reset to the source").wait_for()
    assert event.locator(".mark").inner_text().strip() == "R"


@pytest.mark.slow  # five hundred images make a snapshot
def test_a_stream_is_rolled_back_to_a_state_that_was_kept(open_live, server):
    """One without any says so; one with some offers them."""
    page = open_live(server.url)
    row(page, "yard").get_by_role("button", name="Roll back").click()
    page.wait_for_function("() => document.querySelector('#act-error').textContent")
    assert page.locator("#act-do").is_disabled()
    page.click("#act-cancel")
    send(server.url, "kept", pictures("gaussian_noise", 700)[0], size=50)
    row(page, "kept").get_by_role("button", name="Roll back").click()
    page.wait_for_selector("#act-do:enabled")
    assert re.match(r"version \d+, after \d+ images", page.locator("#act-version").inner_text())
    page.click("#act-do")
    page.wait_for_selector("#act-dialog", state="hidden")
    page.wait_for_selector("#streams tr[data-name=kept] .icon-undo")
    page.locator("#happenings tr", has_text="Rolled back by hand").first.wait_for()


def test_tokens_are_asked_for_where_the_server_does(open_live):
    """One for what is shown and posted, the administrator's for a reset; a wrong one is told, and
    none is asked for twice."""
    tokens = ("--token", "for-images-1", "--admin-token", "for-resets-1", "--token-reads")
    with launch("--method", "tent", "--threads", "1", *tokens) as running:
        with Client(running.url, token="for-images-1") as client:
            client.predict(pictures("fog", 10)[0], stream="gate")
        page = open_live(running.url, ready="", forgiven="401")
        page.wait_for_selector("#token-dialog[open]")
        assert page.locator("#no-streams").inner_text() == "Not known yet."
        page.fill("#token", "wrong-token-1")
        page.keyboard.press("Enter")
        page.get_by_text("That token was refused.").wait_for()
        page.fill("#token", "for-images-1")
        page.keyboard.press("Enter")
        row(page, "gate").wait_for()

        drop(page, pictures("fog", 1)[0][0])
        page.wait_for_selector("#answer:not([hidden])")

        row(page, "gate").get_by_role("button", name="Reset").click()
        page.click("#act-do")
        page.wait_for_selector("#token-dialog[open]")
        assert "reset" in page.locator("#token-why").inner_text()
        page.click("#token-cancel")
        page.wait_for_function("() => document.querySelector('#act-error').textContent")
        page.click("#act-do")
        page.fill("#token", "for-resets-1")
        page.keyboard.press("Enter")
        row(page, "gate").wait_for(state="detached")

        page.reload()
        page.wait_for_selector("body[data-live]")
        assert page.locator("#token-dialog").is_hidden()


# Where it runs


def test_the_server_may_go_and_come_again(open_live, unusable):
    """The page says since when it is alone, what was true then as such, goes on by itself, and
    marks the start."""
    with launch("--method", "source", "--threads", "1") as running:
        port = running.url.rpartition(":")[2]
        send(running.url, "gate", pictures("clean", 5)[0])
        page = open_live(running.url, forgiven=LOST)
        row(page, "gate").wait_for()
        running.stop()
        page.get_by_text("Connection lost since").wait_for()
        page.get_by_text(re.compile("As of .*: The one camera is alive")).wait_for()
        assert page.locator("#headline .icon-ok").count() == 0
        assert row(page, "gate").is_visible()
        assert unusable(page) == []
    with launch("--method", "source", "--threads", "1", "--port", port) as running:
        page.wait_for_selector("#connection[data-state=on]")
        row(page, "gate").wait_for(state="detached")
        page.get_by_text("No camera has sent an image yet.").first.wait_for()
        starts = page.locator("#happenings tr", has_text="The server started")
        page.wait_for_function(
            "() => document.querySelectorAll('#happenings .icon-restart').length === 2"
        )
        assert starts.first.locator(".mark").inner_text().strip() == "S"
        send(running.url, "gate", pictures("clean", 5)[0])
        row(page, "gate").wait_for()


def test_it_works_behind_the_path_of_a_proxy(open_live, server):
    """All that it asks for is below the path."""
    with behind_proxy(server.url) as address:
        page = open_live(address)
        row(page, "gate-1").wait_for()
        drop(page, pictures("fog", 1)[0][0])
        page.wait_for_selector("#answer:not([hidden])")
        page.click("#settings summary")
        page.locator("#server-settings tr").first.wait_for()


def test_settings_are_shown_with_where_they_come_from(open_live, server):
    """All of them, or those that somebody set."""
    page = open_live(server.url)
    page.click("#settings summary")
    line = page.locator(
        "#server-settings tr", has=page.locator("th", has_text=re.compile("^method$"))
    )
    line.wait_for()
    assert line.locator("td").all_inner_texts() == ["ttc", "flag --method"]
    page.check("#settings-set")
    shown = page.locator("#server-settings tr:visible th").all_inner_texts()
    assert {"method", "guard", "threads", "port"} <= set(shown)
    assert "max_batch" not in shown
    assert page.locator("#method-settings tr", has_text="lr").count() == 1


# Who uses it


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["wide", "narrow"])
def test_everybody_can_use_it(open_live, server, unusable, viewport, scheme):
    """None of axe-core's rules is broken, whatever is open; nothing is wider than the screen."""
    page = open_live(server.url, viewport=viewport, color_scheme=scheme)
    row(page, "dock").wait_for()
    assert unusable(page) == []
    assert fits(page)

    for summary in page.locator("details > summary").all():
        summary.click()
    page.locator("#server-settings tr").first.wait_for()
    drop(page, pictures("fog", 1)[0][0])
    page.wait_for_selector("#answer:not([hidden])")
    assert unusable(page) == []
    assert fits(page)

    row(page, "dock").get_by_role("button", name="Reset").click()
    page.wait_for_selector("#act-dialog[open]")
    assert unusable(page) == []
    assert fits(page)
    page.keyboard.press("Escape")
    page.evaluate("document.querySelector('#token-dialog').showModal()")
    assert unusable(page) == []


def test_it_has_two_faces(open_live, server):
    """Light on dark and dark on light, as the machine is set; curves too, when that changes."""
    page = open_live(server.url, color_scheme="light")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(ground) != light
    page.wait_for_timeout(100)
    assert drawn(page, "#curve-images canvas")


def test_all_is_reached_by_keyboard_and_the_focus_is_seen(open_live, server):
    """From the first Tab, which skips to the cameras, to the last button; each with an outline."""
    page = open_live(server.url)
    row(page, "dock").wait_for()
    name = """at => [at.id, at.getAttribute("aria-label"), at.closest("figure")?.id,
                      at.closest("tr")?.dataset.name, at.textContent.trim().slice(0, 40)].join()"""
    wanted = page.evaluate(
        f"""() => [...document.querySelectorAll(
            "a, button, input, select, summary, [tabindex='0']")]
          .filter(each => each.checkVisibility() && !each.disabled).map({name})"""
    )
    seen = []
    for _ in wanted:
        page.keyboard.press("Tab")
        seen.append(page.evaluate(f"() => ({name})(document.activeElement)"))
        assert (
            page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle") == "solid"
        )
    assert seen[0].endswith("Skip to the cameras")
    assert sorted(seen) == sorted(wanted)


def test_a_screen_reader_has_it_all_in_words(open_live, server):
    """Headings, tables with captions and heads, curves with words and tables, one quiet live
    region."""
    page = open_live(server.url)
    row(page, "dock").wait_for()
    tree = page.locator("body").aria_snapshot()
    for expected in (
        'heading "Cameras" [level=2]',
        'table "Cameras, one a row',
        'columnheader "Camera"',
        "rowheader",
        'button "Reset dock"',
        'img "Latency, ms, cut at 10,000. p50:',
        "navigation",
        "main",
    ):
        assert expected in tree, expected
    assert page.locator("[aria-live], [role=status], [role=log]").count() == 1
    assert page.locator("table:not(:has(> caption))").count() == 0
    page.emulate_media(reduced_motion="reduce")
    moving = page.evaluate(
        """() => [...document.querySelectorAll("*")].filter(each => {
          const { transitionDuration, animationName } = getComputedStyle(each);
          return parseFloat(transitionDuration) > 0 || animationName !== "none";
        }).length"""
    )
    assert moving == 0


# In bounds


def test_a_thousand_cameras_are_no_slower(open_live, unusable):
    """A page of rows at a time; the one looked for is found at once; what comes is shown."""
    with launch("--method", "source", "--threads", "1", "--max-streams", "1000") as running:
        image = pictures("clean", 1)[0][0]
        names = [f"camera-{number}" for number in range(1000)]
        with Client(running.url) as client, ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: client.predict([image], stream=name), names))
        page = open_live(running.url)
        page.get_by_text("1 to 50 of 1,000").wait_for()
        assert page.locator("#streams tr").count() == 50
        assert page.locator("#streams th").first.inner_text() == "camera-0"
        assert unusable(page) == []
        page.fill("#search", "camera-777")
        assert page.locator("#streams th").all_inner_texts() == ["camera-777"]
        page.fill("#search", "")
        page.click("#after")
        assert page.locator("#streams th").first.inner_text() == "camera-50"
        spent = page.evaluate(
            """() => {
              const started = performance.now();
              for (let times = 0; times < 10; times++)
                document.querySelector("#search").dispatchEvent(new Event("input"));
              return (performance.now() - started) / 10;
            }"""
        )
        assert spent < 200  # milliseconds
        page.select_option("#sort", "latest")
        send(running.url, "camera-999", [image] * 3)
        page.wait_for_function(
            "() => document.querySelector('#streams tr').dataset.name === 'camera-999'"
        )


def test_names_from_strangers_are_only_ever_text(open_live, server):
    """Markup is shown as it is written; what is absurdly long is cut, its whole in the title."""
    markup = "<img src=x onerror=alert(1)>"
    long = "a very long name " * 400
    rows = [
        camera(name, suspects={markup: 1}, suspect=markup, mode=markup, trouble=2, why=markup)
        for name in (markup, long)
    ]
    events = [
        {"time": time.time(), "event": "guard", "stream": markup, "action": markup, "reason": long},
        {"time": time.time(), "event": markup, "stream": long, "field": markup},
    ]
    model = {"name": markup + long, "digest": markup, "classes": 10}
    said = state(*rows, version=markup, method=markup, page=markup, model=model, events=events)
    page = open_live(server.url, ready="", viewport=NARROW)
    page.route(
        "**/events",
        lambda route: route.fulfill(
            body=f"event: state\ndata: {json.dumps(said)}\n\n", content_type="text/event-stream"
        ),
    )
    page.reload()
    page.wait_for_selector("#streams tr >> nth=1")
    assert page.locator("img:not(#picture)").count() == 0
    assert markup in page.locator("#streams").inner_text()
    whole = page.locator("#streams th >> nth=1").get_attribute("title")
    assert {whole, page.locator("#streams th >> nth=0").get_attribute("title")} == {markup, long}
    assert len(page.locator("#streams").inner_text()) < 2000
    assert len(page.locator("#happenings").inner_text()) < 1000
    assert fits(page)
