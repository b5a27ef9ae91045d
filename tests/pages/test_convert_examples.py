"""What shows conversions: the scripts run, and so does the page on them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from documents import snippets

ROOT = Path(__file__).parents[2]
TIMEOUT = 300


def table_of(script, *options):
    """Run a script; return the cells of the table it prints at last."""
    done = subprocess.run(
        [sys.executable, ROOT / script, *options],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        # More threads than cores wait for each other.
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    *_, table = done.stdout.rstrip().rpartition("\n\n")
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.splitlines()
    ]


def test_convert_backbone():
    pytest.importorskip("keras_hub", reason="keras_hub is not installed")
    options = "--epochs 1 --images 64 --batch-size 2 --rounds 1"
    heading, _, *rows = table_of(
        "examples/convert_backbone.py", *options.split()
    )
    assert heading == ["", "before", "after", "ratio"]
    cells = {name: values for name, *values in rows}
    assert cells["parameters"] == ["2,789,834", "399,050", "0.14"]
    before, after, ratio = cells[".keras file, bytes"]
    assert 0 < int(after.replace(",", "")) < int(before.replace(",", ""))
    assert float(ratio) < 0.2
    assert set(cells) >= {"predict 2 images, ms", "held-out accuracy, %"}


def test_page(tmp_path, monkeypatch, capsys):
    page = ROOT / "docs" / "conversion.md"
    monkeypatch.chdir(tmp_path)
    exec("\n".join(snippets(page)), {})
    shown = re.search(r"```text\n(.*?)```", page.read_text(), re.DOTALL)[1]
    # The kernels are random: each backend has its own, and their errors.
    errors = r"0\.\d{3}\b"
    printed = capsys.readouterr().out
    assert re.sub(errors, "0.___", printed) == re.sub(errors, "0.___", shown)
