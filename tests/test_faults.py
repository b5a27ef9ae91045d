"""Full disks, folders that cannot be written, and signals: nothing is lost."""

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import pytest
from test_fuzz import outcome
from tiny import (
    assert_same_run,
    contents,
    tiny_run,  # noqa: F401  A fixture.
)

import keras_tlgc_launcher as launcher
from keras_tlgc import benchmark, cli, files, training

pytestmark = [
    pytest.mark.real_network,
    pytest.mark.usefixtures("tiny_run"),
]
TINY = ["--data", "tiny", "--model", "plain-1-8", "--conv", "group"]
TINY += ["--groups", "1", "--batch-size", "8", "--epochs", "3"]
TRAIN = ["train", *TINY, "--output"]
COMPARE = ["compare", *TINY, "--seeds", "0,1", "--output"]


@contextlib.contextmanager
def full_disk(size):
    """Let no file grow beyond so many bytes, as on a disk that is full.

    A signal comes with it, which Python ignores.
    """
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def assert_whole(folder):
    """Every file of a run can be read, and none has a name for a while."""
    for name, data in contents(folder).items():
        assert ".partial" not in name
        if name.endswith(".json"):
            json.loads(data)
        if name.endswith(".keras"):
            keras.saving.load_model(folder / name)


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "in.keras"
    layers = [keras.Input((6, 6, 8)), keras.layers.Conv2D(8, 3)]
    keras.Sequential(layers).save(path)
    return path


# --- Full disks


# Of files in the order in which a run writes them.
@pytest.mark.parametrize(
    ("size", "name"),
    [
        (9, "config.json"),
        (900, "checkpoint.weights.h5"),
        (20_000, "checkpoint.weights.h5"),
    ],
)
def test_disk_full_while_training(tmp_path, capsys, size, name):
    folder = tmp_path / "run"
    with full_disk(size):
        status, line = outcome_of_run(capsys, folder)
    assert status == 2
    assert f"{name}' cannot be written" in line
    assert "What was written before is whole." in line
    assert_whole(folder)
    goes_on = ["--resume"] if (folder / "config.json").exists() else []
    assert cli.run([*TRAIN, str(folder), *goes_on]) == 0
    assert cli.run([*TRAIN, str(tmp_path / "whole")]) == 0
    assert_same_run(folder, tmp_path / "whole")


def outcome_of_run(capsys, folder, *options):
    """As `outcome`, but for what a run prints before it fails."""
    with pytest.raises(SystemExit) as exit_:
        cli.run([*TRAIN, str(folder), *options])
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.out
    return exit_.value.code, captured.err


@pytest.mark.parametrize("name", ["curves.png", "model.keras", "history.csv"])
def test_no_space_for_one_file(tmp_path, capsys, monkeypatch, name):
    """The last files, whose sizes are those of others."""
    folder = tmp_path / "run"

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if name == "history.csv":
            # What is flushed first: the rest of the row is never written.
            patch.setattr(keras.callbacks.CSVLogger, "on_epoch_end", full)
        elif name == "curves.png":
            patch.setattr(training.folder, "_plot", full)
        else:
            patch.setattr(keras.Model, "save", full)
        status, line = outcome_of_run(capsys, folder)
    assert status == 2 and "No space left on device" in line
    assert not (folder / "model.keras").exists()
    assert_whole(folder)
    assert cli.run(["train", "--resume", "--output", str(folder)]) == 0
    assert cli.run([*TRAIN, str(tmp_path / "whole")]) == 0
    assert_same_run(folder, tmp_path / "whole")


def test_disk_full_while_a_run_is_replaced(tmp_path, capsys):
    """The old run is there until the new one can begin."""
    folder = tmp_path / "run"
    assert cli.run([*TRAIN, str(folder)]) == 0
    before = contents(folder)
    capsys.readouterr()
    with full_disk(9):
        status, line = outcome_of_run(capsys, folder, "--overwrite")
    assert status == 2 and "config.json' cannot be written" in line
    assert contents(folder) == before


def test_disk_full_while_comparing(tmp_path, capsys):
    folder = tmp_path / "all"
    with full_disk(5000):
        with pytest.raises(SystemExit, match="2"):
            cli.run([*COMPARE, str(folder)])
    captured = capsys.readouterr()
    assert "cannot be written" in captured.err
    assert "Traceback" not in captured.out + captured.err
    assert_whole(folder)
    command = ["compare", "--resume", "--output", str(folder)]
    assert cli.run(command) == 0
    with open(folder / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["failure"] for row in rows] == ["", ""]


@pytest.mark.parametrize("is_there", [False, True])
def test_disk_full_while_converting(tmp_path, capsys, model, is_there):
    out = tmp_path / "out.keras"
    if is_there:
        out.write_text("mine")
    before = contents(tmp_path)
    command = ["convert", str(model), str(out), "--groups", "4", "--overwrite"]
    with full_disk(4000), pytest.raises(SystemExit, match="2"):
        cli.run(command)
    captured = capsys.readouterr()
    assert "out.keras' cannot be written" in captured.err
    assert captured.err.count("\n") == 1
    assert contents(tmp_path) == before
    assert cli.run(command) == 0


def test_disk_full_while_timing(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("mine")
    with full_disk(9), pytest.raises(OSError, match="cannot be written"):
        benchmark.write_rows([], path)
    assert contents(tmp_path) == {"rows.csv": b"mine"}


def test_the_disk_is_asked_before_hdf5_writes(tmp_path):
    files.reserve(tmp_path / "some", 1000)
    assert (tmp_path / "some").exists()
    if hasattr(os, "posix_fallocate"):
        with full_disk(999), pytest.raises(OSError):
            files.reserve(tmp_path / "more", 1000)


# --- Folders that cannot be written


@pytest.fixture
def read_only(tmp_path, monkeypatch):
    """A folder where nothing can be made, also for root."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    folder.chmod(0o555)
    if os.access(folder, os.W_OK):  # Root may.
        real_open, real_access = Path.open, os.access

        def guarded_open(path, mode="r", *arguments, **options):
            if mode not in ("r", "rb") and folder in path.parents:
                raise PermissionError(13, "Permission denied", str(path))
            return real_open(path, mode, *arguments, **options)

        def guarded_access(path, mode):
            is_asked = mode == os.W_OK and Path(path) == folder
            return not is_asked and real_access(path, mode)

        monkeypatch.setattr(Path, "open", guarded_open)
        monkeypatch.setattr(os, "access", guarded_access)
    yield folder
    folder.chmod(0o755)


def test_folder_that_is_read_only(read_only, capsys, model):
    for command in (
        [*TRAIN, read_only],
        [*COMPARE, read_only],
        ["convert", model, read_only / "out.keras", "--groups", "4"],
        ["benchmark", "--shapes", "wrn", "--output", read_only / "rows.csv"],
    ):
        status, line = outcome(capsys, *command)
        assert status == 2
        assert "Permission denied" in line or "that can be written" in line
        assert not list(read_only.iterdir())


def test_a_file_where_a_folder_would_be(tmp_path, capsys, model):
    (tmp_path / "file").write_text("mine")
    inside = tmp_path / "file" / "inside"
    for command in (
        [*TRAIN, inside],
        [*COMPARE, inside],
        ["convert", model, inside / "out.keras", "--groups", "4"],
        ["benchmark", "--shapes", "wrn", "--output", inside / "rows.csv"],
    ):
        assert outcome(capsys, *command)[0] == 2
        assert (tmp_path / "file").read_text() == "mine"


def test_what_cannot_be_renamed_is_removed(tmp_path, monkeypatch):
    def refuse(source, target):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "text").write_text("mine")
    monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises(OSError, match=r"text' cannot be written \(.*denied\)"):
        files.write_text(tmp_path / "text", "other")
    assert contents(tmp_path) == {"text": b"mine"}


# --- Other processes


def test_one_process_at_a_time(tmp_path, capsys):
    for command in (TRAIN, COMPARE):
        folder = tmp_path / command[0]
        with training.folder.locked(folder):
            status, line = outcome(capsys, *command, folder)
        assert status == 2
        assert "A folder takes one process at a time. Received: " in line
        assert not list(folder.iterdir())
        (folder / ".lock").touch()  # As one that was killed leaves it.
        assert cli.run([*command, str(folder)]) == 0
        assert not (folder / ".lock").exists()


def test_folders_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(ValueError, match=r"folder that is there or can be made"),
        training.folder.locked(tmp_path / "file" / "inside"),
    ):
        pass


# --- Signals


# A command on the tiny data, which takes its time for every epoch but the
# first, so that a signal meets it: also where these tests are a shell's
# background job, which ignores SIGINT and so would what it starts.
SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, sys.argv[1])
import tiny
import keras_tlgc_launcher
from keras_tlgc.training import batches, data
data.DATASETS["tiny"] = tiny.tiny_digits
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
        [sys.executable, "-c", SLOW, str(Path(__file__).parent), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "KERAS_BACKEND": keras.backend.backend()},
    )
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    _, error = process.communicate(timeout=120)
    assert "Traceback" not in error
    return process.returncode


ONCE = pytest.mark.skipif(
    keras.backend.backend() != "torch",
    reason="runs end as `train` does, which every backend is tested for",
)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(TRAIN, id="train"),
        pytest.param(COMPARE, id="compare", marks=ONCE),
    ],
)
def test_signals_leave_what_can_be_resumed(tmp_path, command, name):
    number = getattr(signal, name)
    ended, whole = tmp_path / "ended", tmp_path / "whole"
    run = "." if command is TRAIN else "runs/group-n1-seed0"
    checkpoint = ended / run / training.folder.CHECKPOINT
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
    with pytest.raises(SystemExit, match="130"):
        launcher.main()
    assert capsys.readouterr().err == ""
