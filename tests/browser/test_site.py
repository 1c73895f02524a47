"""The documentation's site in a browser: nothing is asked for elsewhere, on a telephone too."""

import contextlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.fixtures.site import copied, make_docs


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    """Where the site is, as any static server has it."""
    folder: Path = copied(tmp_path_factory.mktemp("checkout"))
    assert make_docs(folder).returncode == 0
    handler = partial(Quiet, directory=str(folder / "build" / "site"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.parametrize("width", [375, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_the_screen(watched_page, address, width, scheme):
    """Wide tables scroll inside their own boxes; nothing complains, nor is asked of others."""
    for name in ("", "docs/guard/", "docs/tutorial/", "docs/settings/"):
        page = watched_page(
            f"{address}{name}",
            address,
            "data:",
            viewport={"width": width, "height": 800},
            color_scheme=scheme,
        )
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_what_is_looked_for_is_found(watched_page, address):
    """By the site's own index."""
    from playwright.sync_api import TimeoutError

    page = watched_page(address, address, "data:", "blob:", viewport={"width": 1280, "height": 800})
    found = page.get_by_text("What to watch, and when to worry").first
    for _ in range(10):  # keys count once the page's script listens
        page.keyboard.press("/")
        page.keyboard.type("shedding")
        with contextlib.suppress(TimeoutError):
            found.wait_for(timeout=5000)
            break
        page.reload()
    assert found.is_visible()
