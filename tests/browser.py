"""A page in Debian's Chromium, driven by Playwright, and what goes wrong on it."""

import contextlib
import shutil

CHROMIUM = shutil.which("chromium")


@contextlib.contextmanager
def open_browser():
    """A blank page, and a list that takes its errors; skips nothing, so check CHROMIUM and Playwright before."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 1250})
        wrong = []
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        yield page, wrong
        browser.close()
