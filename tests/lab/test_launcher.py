"""The command line as a process: its backend, its errors, its output."""

import importlib.util
import sys

import pytest
from commands import run

import keras_tlgc_launcher as launcher
from keras_tlgc import cli


@pytest.mark.parametrize(("debug", "shown"), [("1", True), ("0", False)])
def test_where_an_error_comes_from(monkeypatch, capsys, debug, shown):
    monkeypatch.setenv("KERAS_TLGC_DEBUG", debug)
    with pytest.raises(SystemExit, match="2"):
        cli.run(["params", "--model", "AlexNet"])
    *trace, last = capsys.readouterr().err.splitlines()
    assert last.startswith("keras-tlgc: error: `model` must be of the")
    assert any("in network_builder" in line for line in trace) == shown
    assert bool(trace) == shown


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("caffe", "KERAS_BACKEND must be one of ['jax', 'tensorflow'"),
        ("missing", "which is not installed. Install it: pip install"),
    ],
)
def test_backend_errors(backend, message):
    if backend == "missing":
        missing = [
            b for b in launcher.BACKENDS if not importlib.util.find_spec(b)
        ]
        if not missing:
            pytest.skip("every backend is installed")
        backend = missing[0]
    result = run("train", KERAS_BACKEND=backend)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


def choose(monkeypatch, tmp_path, installed, wanted=None, configured=None):
    monkeypatch.setattr(launcher, "_installed", lambda name: name in installed)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    if wanted:
        monkeypatch.setenv("KERAS_BACKEND", wanted)
    if configured:
        (tmp_path / "keras.json").write_text(configured)
    return launcher.choose_backend()


@pytest.mark.parametrize(
    ("installed", "wanted", "configured", "chosen"),
    [
        (["torch"], None, None, "torch"),
        (["torch"], None, '{"backend": "tensorflow"}', "torch"),
        (["jax", "torch"], None, '{"backend": "torch"}', "torch"),
        (["jax", "torch"], None, "{", "jax"),
        (["jax", "torch"], None, "[]", "jax"),
        (["jax", "torch"], "torch", '{"backend": "jax"}', "torch"),
    ],
)
def test_choice_of_backend(
    monkeypatch, tmp_path, installed, wanted, configured, chosen
):
    assert chosen == choose(
        monkeypatch, tmp_path, installed, wanted, configured
    )


def test_no_backend(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="Keras needs a backend"):
        choose(monkeypatch, tmp_path, [])


def test_missing_package_of_the_command_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "keras_tlgc.cli", None)
    with pytest.raises(SystemExit) as exit_:
        launcher.main()
    assert exit_.value.code == 2
    assert "pip install 'keras-tlgc[cli]'" in capsys.readouterr().err


@pytest.mark.real_network
def test_train(tmp_path):
    """The main job, small, as its output is kept in a file or a pipe."""
    options = ["train", "--model", "plain-2-16", "--conv", "standard"]
    done = run(
        *options, "--epochs", 1, "--batch-size", 200, "--output", tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("val_accuracy") == 1
    assert "\x1b" not in done.stdout + done.stderr
    assert "Held-out accuracy" in done.stdout
    assert (tmp_path / "model.keras").exists()
