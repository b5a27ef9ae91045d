"""examples/browser: two networks in a page, in a browser without a window."""

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "browser"
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Serve the page with networks made for it; return its address."""
    for package in ("onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    if not (FOLDER / "node_modules").exists() or not BROWSER:
        pytest.skip("there is no Chromium, or npm install was not run")
    folder = tmp_path_factory.mktemp("page")
    for path in FOLDER.iterdir():
        if path.name != "models":
            (folder / path.name).symlink_to(path)
    options = "--model wrn-10-1 --epochs 1 --output models"
    done = subprocess.run(
        [sys.executable, FOLDER / "make.py", *options.split()],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    handler = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=folder
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def text_of(address):
    """Return the page as it is after its scripts have run."""
    options = "--headless --no-sandbox --disable-gpu --dump-dom"
    return subprocess.run(
        [BROWSER, *options.split(), "--virtual-time-budget=60000", address],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    ).stdout


def test_both_networks_give_keras_outputs_in_the_browser(page):
    text = text_of(f"{page}?check")
    [found] = re.findall(r'<p id="status">(.*)</p>', text)
    result = json.loads(found)
    assert max(result["differences"]) < 1e-4
    assert min(result["correct"]) > 5  # 2 of 20 by chance, after one epoch.
    sizes = [float(size) for size in re.findall(r"<td>([\d.]+) MB</td>", text)]
    assert sizes[1] < 0.6 * sizes[0]
    # What was drawn is read, shown and timed.
    assert re.search(r"reads</th><td>\d</td><td>\d</td>", text)
    assert len(re.findall(r"<td>[\d.]+ ms</td>", text)) == 2
    assert all(0 <= digit <= 9 for digit in result["drawn"])
