"""The memory's page in a real browser: Debian's Chromium, driven by Playwright.

LAM_MEMORY_SCREENSHOT names a file for a picture.
"""

import os

import pytest

from lam_transformers.memories import Keys, Memory, Scope

from ..browser import CHROMIUM, open_browser

pytest.importorskip("fastapi", reason="the serve extra is not installed")
MARKUP = "<img src=x onerror=alert(1)> & <b>guitar</b>"


def test_the_page_is_whole_without_a_network(memory_server, server):
    with memory_server.client() as client:
        page = client.get("/memory")
        assert page.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "http" not in page.text
        assert client.get("/memory.js").headers["content-type"].startswith("text/javascript")
        assert 'href="/memory"' in client.get("/").text
        assert "/conversations/gist" in client.get("/docs").text
    with server.client() as client:  # without a memory
        assert client.get("/memory").status_code == 404
        assert 'href="/memory"' not in client.get("/").text


@pytest.fixture
def page(memory_server):
    """The page in a browser; nothing may go wrong on it, and nothing may be asked of another server."""
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with open_browser() as (page, wrong):
        page.set_default_timeout(20_000)
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        here = (memory_server.url, "data:")
        page.on("request", lambda request: None if request.url.startswith(here) else wrong.append(request.url))
        page.goto(f"{memory_server.url}/memory")
        yield page
    # The browser says of its own that an answer was a 401 or 403.
    assert [text for text in wrong if "status of 40" not in text] == []


@pytest.mark.slow
def test_a_person_at_the_page(page, memory_server, memory_place, user, nothing_shared_is_left):
    with Memory(memory_place, model=None) as memory:
        keys = Keys(memory.store)
        key = keys.add(user, Scope(user))
        with memory_server.client(headers={"X-API-Key": keys.add(f"shared {user}", Scope())}) as shared:
            text = f"The river.\n\nThe {user} handbook."
            shared.post("/documents", json={"text": text, "title": f"Handbook {user}"})
    # Without a key the page says what is missing.
    page.click("#list")
    page.wait_for_selector("#status.wrong")
    assert "needs a key" in page.inner_text("#status")
    page.fill("#key", key)
    for said in ("The dog of the old man sleeps.", MARKUP):
        page.fill("#text", said)
        page.fill("#fact", "dog" if "dog" in said else "")
        page.click("#add")
        page.locator("article", has_text=said).wait_for()
        assert page.inner_text("#added") == "Remembered."
    page.click("#list")
    page.wait_for_selector("#status:has-text('2 memories')")
    assert page.locator("article .said").all_inner_texts() == ["The dog of the old man sleeps.", MARKUP]
    # Searched, explained, corrected.
    for _ in range(2):
        page.fill("#query", "Where does the dog sleep?")
        page.press("#query", "Enter")
        page.wait_for_selector("#status:has-text('results')")
    dog = page.locator("article", has_text="The dog of the old man").first
    dog.get_by_role("button", name="Why").click()
    assert "strength" in dog.locator("table").inner_text()
    dog.get_by_role("button", name="Strengths").click()
    dog.locator("svg").wait_for()
    assert dog.locator("svg polyline").count() == 2
    assert dog.locator("td", has_text="recalled").count() == 2
    if os.environ.get("LAM_MEMORY_SCREENSHOT"):
        page.screenshot(path=os.environ["LAM_MEMORY_SCREENSHOT"], full_page=True)
    dog.get_by_role("button", name="Correct").click()
    dog.locator("textarea").fill("The dog of the old man runs.")
    dog.get_by_role("button", name="Save").click()
    page.wait_for_selector("#status:has-text('Corrected')")
    dog.get_by_role("button", name="History").click()
    dog.locator("table").wait_for()
    assert "sleeps" in dog.locator("table").inner_text()
    assert "runs" in dog.locator("table").inner_text()
    # What is shared can be read, and not forgotten.
    page.click("#documents")
    handbook = page.locator("article", has_text=f"Handbook {user}")
    handbook.get_by_role("button", name="Read").click()
    handbook.locator(".long").wait_for()
    assert handbook.locator(".long").inner_text() == text
    handbook.get_by_role("button", name="Forget").click()
    handbook.get_by_role("button", name="Forget for good?").click()
    handbook.locator(".result.wrong").wait_for()
    assert "not changed" in handbook.locator(".result").inner_text()
    # Forgotten, after a second click only.
    page.click("#list")
    page.wait_for_selector("#status:has-text('2 memories')")
    dog.get_by_role("button", name="Forget").click()
    dog.get_by_role("button", name="Forget for good?").click()
    page.wait_for_selector("#status:has-text('nothing of it remains')")
    page.click("#list")
    page.wait_for_selector("#status:has-text('1 memories')")
    assert page.locator("article .said").all_inner_texts() == [MARKUP]
    page.fill("#user", "somebody else")
    page.click("#list")
    page.wait_for_selector("#status.wrong")
    assert "bound to another user_id" in page.inner_text("#status")
