"""What the pages' tests share: a browser, and pages that note what they ask for and complain of."""

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


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

    What it may ask for begins with one of `allowed`; all else never leaves the browser.
    """
    problems: list[str] = []
    contexts = []

    def open_page(address: str, *allowed: str, **options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)

        def let_through(route: Any) -> None:
            if route.request.url.startswith(allowed):
                route.continue_()
            else:
                problems.append(f"asked for {route.request.url}")
                route.abort()

        context.route("**/*", let_through)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []
