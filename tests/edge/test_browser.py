"""examples/edge/browser in Debian's Chromium, driven by Playwright: nothing leaves the page.

LAM_NODE_MODULES names a folder of `npm install onnxruntime-web @huggingface/tokenizers`; LAM_SCREENSHOT a file for a
picture.
"""

import functools
import http.server
import os
import shutil
import threading
from pathlib import Path

import pytest
from handbook import HANDBOOK, ROOT

from lam_transformers.checkpoints.onnx import export_onnx

from ..browser import CHROMIUM, open_browser

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
MODULES = Path(os.environ.get("LAM_NODE_MODULES", "node_modules"))


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files and keeps no log."""

    extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | {".mjs": "text/javascript"}

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address(trained_model, tmp_path_factory):
    """The page, its modules and the released model in int8, on this machine."""
    folder = tmp_path_factory.mktemp("page") / "site"
    shutil.copytree(ROOT / "examples/edge/browser", folder)
    (folder / "node_modules").symlink_to(MODULES.resolve())
    export_onnx(trained_model, folder / "model", "int8")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
@pytest.mark.skipif(not (MODULES / "onnxruntime-web").is_dir(), reason="LAM_NODE_MODULES has no onnxruntime-web")
def test_a_person_searches_in_a_pasted_book(address):
    with open_browser() as (page, wrong):
        requests = []
        page.on("request", lambda request: requests.append((request.method, request.url)))
        page.goto(address)
        page.wait_for_selector("#status:has-text('is loaded')", timeout=120_000)
        before = len(requests)
        page.fill("#book", HANDBOOK.read_text(encoding="utf-8") + "\n\n\U0001f642 The cat is called Minka.")
        page.click("#read")
        page.wait_for_selector("#search:enabled", timeout=300_000)
        print(page.inner_text("#status"))
        page.fill("#question", "What is the name of the cat?")
        page.click("#search")
        page.wait_for_selector("#results li")
        assert "The cat is called Minka." in page.inner_text("#results li:first-child")
        assert len(page.query_selector_all("#results li")) == 5
        assert len(requests) == before, "the page asked for something after it was loaded"
        assert all(method == "GET" and url.startswith((address, "data:", "blob:")) for method, url in requests)
        assert not wrong
        if os.environ.get("LAM_SCREENSHOT"):
            page.screenshot(path=os.environ["LAM_SCREENSHOT"], full_page=True)
        page.fill("#question", "")
        page.click("#search")
        page.wait_for_selector("#status.wrong")
        assert "no question" in page.inner_text("#status")
