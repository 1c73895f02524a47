"""/docs as a person opens it: from a server that is all there is of a network."""

from collections.abc import Iterator

import httpx
import pytest

from tests.fixtures.forked import launch
from tests.fixtures.proxy import behind_proxy


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with launch("--method", "source", "--threads", "1", "--token", "a long secret") as running:
        yield running.url


def test_every_route_is_shown_with_no_network_but_the_server(watched_page, server):
    """Routes, their parameters and the forms of answers; the browser is let out to nothing else."""
    document = httpx.get(f"{server}/openapi.json").json()
    page = watched_page(f"{server}/docs", f"{server}/", "data:")
    page.wait_for_selector(".opblock")
    shown = {
        (
            each.query_selector(".opblock-summary-method").inner_text(),
            path.get_attribute("data-path"),
        )
        for each in page.query_selector_all(".opblock")
        if (path := each.query_selector("[data-path]"))
    }
    assert shown == {
        (method.upper(), path) for path, of in document["paths"].items() for method in of
    }
    page.click("[data-path='/predict']")
    page.wait_for_selector("[data-param-name='top_k']")
    # Its style is there, too, and its icons, which are data.
    assert (
        page.evaluate("getComputedStyle(document.querySelector('.opblock-post')).borderRadius")
        != "0px"
    )


@pytest.fixture
def prefixed(server) -> Iterator[str]:
    """The server behind a proxy which has it under a path, and nothing else."""

    with behind_proxy(server) as address:
        yield address


@pytest.mark.parametrize("where", ["server", "prefixed"])
def test_a_route_can_be_tried_with_the_token(watched_page, where, request):
    """What the policy lets through is enough for that: the answer is shown below the route."""
    server = request.getfixturevalue(where)
    page = watched_page(f"{server}/docs", f"{server}/", "data:")
    page.click(".btn.authorize")
    page.fill(".modal-ux input", "a long secret")
    page.click(".modal-ux button.authorize")
    page.click(".modal-ux button.btn-done")
    page.click("[data-path='/reset']")
    page.click(".try-out__btn")
    page.click(".execute")
    answer = page.wait_for_selector(".live-responses-table tbody .response-col_status")
    assert answer.inner_text().startswith("200")
