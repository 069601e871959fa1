"""The page at / in a real browser: Debian's Chromium, driven by Playwright.

LAM_SCREENSHOT names a file for a picture.
"""

import os

import pytest
from handbook import HANDBOOK

from ..browser import CHROMIUM, open_browser

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


def test_the_pages_are_whole_without_a_network(client):
    for path in ("/", "/docs"):
        page = client.get(path)
        assert page.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "http://" not in page.text.replace(str(client.base_url), "")
        assert "https://" not in page.text
    assert "/v1/embeddings" in client.get("/docs").text
    assert client.get("/page.js").headers["content-type"].startswith("text/javascript")
    assert client.get("/page.css").headers["content-type"].startswith("text/css")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_a_person_at_the_page(start_server, trained_model):
    server = start_server(model=trained_model)
    with open_browser() as (page, wrong):
        here = (server.url, "data:")
        page.on("request", lambda request: None if request.url.startswith(here) else wrong.append(request.url))
        page.goto(server.url)
        page.click("#compare")
        page.wait_for_selector("#score:has-text('Similarity')")
        assert float(page.inner_text("#score").split()[-1]) > 0.3
        document = HANDBOOK.read_text(encoding="utf-8")[:20_000]
        page.fill("#document", f"{document}\n\n\U0001f642 The cat is called Minka.")
        page.fill("#question", "What is the name of the cat?")
        page.click("#search")
        page.wait_for_selector("mark.best", timeout=120_000)
        assert page.inner_text("mark.best") == "\U0001f642 The cat is called Minka."
        assert len(page.query_selector_all("mark")) == 5
        if os.environ.get("LAM_SCREENSHOT"):
            page.screenshot(path=os.environ["LAM_SCREENSHOT"], full_page=True)
        # What the server refuses is said on the page.
        page.fill("#question", "")
        page.click("#search")
        page.wait_for_selector("#status.wrong")
        assert "empty" in page.inner_text("#status")
        page.goto(f"{server.url}/docs")
        assert "/late-chunks" in page.inner_text("main")
    # The browser says of its own that an answer was a 400.
    assert [text for text in wrong if "400" not in text] == []
