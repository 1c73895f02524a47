"""What the pages' tests share: a browser, pages that note what they ask for and complain of, and
a judge of who can use one."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.live_page import WIDE

CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    # A camera that shows a moving picture, and may be used.
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),
]
# Milliseconds; where other work shares the cores, a second becomes many.
PATIENCE = 90_000.0
# Where another test starts a container, the browser drops what it was loading. That is nobody's
# fault: what was disturbed is loaded again.
DISTURBED = "ERR_NETWORK_CHANGED"
AXE = Path(__file__).parents[1] / "fixtures" / "axe" / "axe.min.js"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real one. In CI it has to be there. No longer: as long as it is there, its event loop runs
    in this thread, and no other can."""
    if not os.environ.get("CI"):
        pytest.importorskip("playwright", reason="playwright is not installed")
        if CHROMIUM is None:
            pytest.skip("no chromium here")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def watched_page(browser) -> Iterator[Any]:
    """Opens an address; at the end nothing has complained, nor asked beyond what it was allowed.

    What it may ask for begins with one of `allowed`; all else never leaves the browser. Complaints
    that match `forgiven` are what the test is about.
    """
    problems: list[str] = []
    contexts = []

    def open_page(address: str, *allowed: str, forgiven: str = "(?!)", **options: Any) -> Any:
        disturbed: list[str] = []

        def complain(text: str) -> None:
            if DISTURBED in text:
                disturbed.append(text)
            elif not re.search(forgiven, text):
                problems.append(text)

        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(PATIENCE)

        def let_through(route: Any) -> None:
            if route.request.url.startswith(allowed):
                route.continue_()
            else:
                problems.append(f"asked for {route.request.url}")
                route.abort()

        context.route("**/*", let_through)
        page = context.new_page()
        page.on("console", lambda message: complain(message.text))
        page.on("pageerror", lambda error: complain(str(error)))
        for _ in range(5):
            disturbed.clear()
            try:
                page.goto(address)
            except Exception as error:
                if DISTURBED not in str(error):
                    raise
                disturbed.append(str(error))
            if not disturbed:
                return page
        raise AssertionError(f"the network does not come to rest: {disturbed}")

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture
def open_live(watched_page):
    """Opens the page, which may ask nobody but its server, and waits until that has told all."""

    def opened(
        url: str, *, ready: str = "body[data-live]", beside: str | None = None, **options: Any
    ) -> Any:
        options.setdefault("viewport", WIDE)
        allowed = [f"{url}/", "blob:"]
        if beside is not None:  # another path of the same proxy
            allowed.append(f"{url.rpartition('/')[0]}{beside}/")
        page = watched_page(f"{url}/", *allowed, **options)
        if ready:
            page.wait_for_selector(ready, state="attached")
        return page

    return opened


@pytest.fixture
def unusable() -> Callable[[Any], list[tuple[str, list[Any]]]]:
    """What axe-core finds wrong with a page as it is: by which rule, and with which elements."""
    source = AXE.read_text()

    def found(page: Any) -> list[tuple[str, list[Any]]]:
        page.evaluate(source)
        violations = page.evaluate("axe.run(document)")["violations"]
        return [(each["id"], [node["target"] for node in each["nodes"]]) for each in violations]

    return found
