"""Signals end a run so that it can be resumed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import pytest
from tiny import (
    COMPARE,
    TRAIN,
    assert_same_run,
    tiny_run,  # noqa: F401  A fixture.
)

import keras_tlgc_launcher as launcher
from keras_tlgc import cli, lab

pytestmark = [
    pytest.mark.real_network,
    pytest.mark.usefixtures("tiny_run"),
]


# A command on the tiny data, which takes its time for every epoch but the
# first, so that a signal meets it: also where these tests are a shell's
# background job, which ignores SIGINT and so would what it starts.
SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, sys.argv[1])
import tiny
import keras_tlgc_launcher
from keras_tlgc.lab.data import batches, sets
sets.DATASETS["tiny"] = tiny.tiny_digits
real = batches.Batches.set_epoch
def set_epoch(self, epoch):
    real(self, epoch)
    time.sleep(30 if epoch else 0)
batches.Batches.set_epoch = set_epoch
sys.argv = ["keras-tlgc", *sys.argv[2:]]
keras_tlgc_launcher.main()
"""


def signalled(number, arguments, checkpoint):
    """Run a command, and send a signal after the first epoch of a run."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            SLOW,
            str(Path(__file__).parents[1]),
            *arguments,
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "KERAS_BACKEND": keras.backend.backend()},
    )
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    _, error = process.communicate(timeout=120)
    interrupted = "keras-tlgc: interrupted\n"
    assert error == (interrupted if number == signal.SIGINT else "")
    return process.returncode


@pytest.mark.parametrize(
    ("command", "name"),
    [(TRAIN, "SIGTERM"), (COMPARE, "SIGINT")],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_signals_leave_what_can_be_resumed(tmp_path, command, name):
    number = getattr(signal, name)
    ended, whole = tmp_path / "ended", tmp_path / "whole"
    run = "." if command is TRAIN else "runs/group-n1-seed0"
    checkpoint = ended / run / lab.folder.CHECKPOINT
    status = signalled(number, [*command, str(ended)], checkpoint)
    assert status == 128 + number
    assert not list(ended.rglob(".*"))
    assert not (ended / run / "model.keras").exists()
    assert cli.run([command[0], "--resume", "--output", str(ended)]) == 0
    assert cli.run([*command, str(whole)]) == 0
    assert_same_run(ended / run, whole / run)
    if command is COMPARE:
        assert_same_results(ended, whole)


def assert_same_results(one, other):
    for name in ("results.csv", "table.md"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


def test_an_interrupt_while_the_backend_is_imported(monkeypatch, capsys):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(launcher, "choose_backend", interrupt)
    monkeypatch.setattr(launcher.os, "_exit", sys.exit)
    with pytest.raises(SystemExit, match="130"):
        launcher.main()
    assert capsys.readouterr().err == "keras-tlgc: interrupted\n"
