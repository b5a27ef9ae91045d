"""The command line as a process: its backend, its errors, kills."""

import importlib.util
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from commands import COMMAND, run
from helpers import users_environment

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


def kill_once(path, *options):
    """Run a command, and kill it as soon as it has written a file."""
    process = subprocess.Popen(
        [*COMMAND, *map(str, options)],
        stdout=subprocess.DEVNULL,
        env=users_environment(),
    )
    while not path.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.real_network
def test_train_killed_and_resumed(tmp_path):
    """The main job, small: killed in its second epoch, then resumed."""
    options = ["train", "--model", "plain-2-16", "--conv", "standard"]
    options += ["--epochs", 2, "--batch-size", 200, "--output"]
    whole = run(*options, tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout.count("val_accuracy") == 2  # A line an epoch, in a
    assert "\x1b" not in whole.stdout + whole.stderr  # file or a pipe.
    assert "Held-out accuracy" in whole.stdout

    killed = tmp_path / "killed"
    kill_once(killed / "checkpoint.weights.h5", *options, killed)
    assert not (killed / "model.keras").exists()

    resumed = run("train", "--resume", "--output", killed)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.count("val_accuracy") <= 1
    one, other = (
        keras.saving.load_model(folder / "model.keras").get_weights()
        for folder in (tmp_path / "whole", killed)
    )
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)
