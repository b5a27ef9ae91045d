"""The notebooks run from top to bottom, and come to what they say."""

import re
import subprocess
import sys

import nbformat
import pytest
from documents import README
from helpers import users_environment
from meshes import ON_JAX

FOLDER = README.parent / "examples" / "notebooks"


def notebook(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(name):
    return [c for c in notebook(name).cells if c.cell_type == "code"]


@pytest.mark.parametrize(
    "path", sorted(FOLDER.glob("*.ipynb")), ids=lambda p: p.stem
)
def test_no_output_is_kept(path):
    nbformat.validate(notebook(path.stem))
    for cell in code_cells(path.stem):
        assert not cell.outputs and cell.execution_count is None


def run(name, folder):
    """Return what the cells of a notebook print, one after the other."""
    script = folder / f"{name}.py"
    script.write_text("\n\n".join(cell.source for cell in code_cells(name)))
    done = subprocess.run(
        [sys.executable, script],
        cwd=folder,
        env=users_environment(MPLBACKEND="Agg"),
        capture_output=True,
        text=True,
        timeout=1000,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def percent(pattern, printed):
    [number] = re.findall(pattern, printed)
    return float(number)


def test_two_level_convolution(tmp_path):
    printed = run("two_level_convolution", tmp_path)
    wrong = r": ([\d.]+)% of new images wrong"
    assert abs(percent("\ngroup" + wrong, printed) - 75) < 5
    assert percent("two-level" + wrong, printed) < 5
    assert percent("largest difference: (.*)", printed) < 1e-4


@ON_JAX
def test_convert_and_split(tmp_path):
    printed = run("convert_and_split", tmp_path)
    assert "3 of 4 convolutions converted" in printed
    assert percent(r"([\d.]+)% right after", printed) > 85
    assert (tmp_path / "lighter.keras").stat().st_size
    assert "\nOK: nothing moves" in printed
    assert percent(r"([\d.]+)% of new digits, on 4", printed) > 85
