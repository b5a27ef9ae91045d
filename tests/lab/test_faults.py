"""Full disks, folders that cannot be written, other processes."""

import contextlib
import json
import os

import keras
import pytest
from commands import error_of
from tiny import (
    COMPARE,
    TRAIN,
    assert_same_run,
    contents,
    tiny_run,  # noqa: F401  A fixture.
)

from keras_tlgc import cli, files, lab
from keras_tlgc.distribution import checkpoint

pytestmark = [
    pytest.mark.real_network,
    pytest.mark.usefixtures("tiny_run"),
]


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
            patch.setattr(lab.RunFolder, "record", full)
        elif name == "curves.png":
            patch.setattr(lab.folder, "plot_history", full)
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


def test_disk_full_while_converting(tmp_path, capsys, model):
    (tmp_path / "out.keras").write_text("mine")
    before = contents(tmp_path)
    command = ["convert", str(model), str(tmp_path / "out.keras")]
    with full_disk(4000), pytest.raises(SystemExit, match="2"):
        cli.run([*command, "--groups", "4", "--overwrite"])
    assert "out.keras' cannot be written" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_the_disk_is_asked_before_hdf5_writes(tmp_path):
    files.reserve(tmp_path / "some", 1000)
    assert (tmp_path / "some").exists()
    if hasattr(os, "posix_fallocate"):
        with full_disk(999), pytest.raises(OSError):
            files.reserve(tmp_path / "more", 1000)


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype float64")  # JAX
@pytest.mark.parametrize(("dtype", "size"), [("float64", 8), ("float16", 2)])
def test_room_for_weights_of_any_dtype(dtype, size, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(checkpoint, "reserve", lambda _, n: asked.append(n))
    model = keras.Sequential(
        [keras.Input((50,)), keras.layers.Dense(70, dtype=dtype)]
    )
    checkpoint.save(model, tmp_path / "some.weights.h5")
    assert asked == [size * 51 * 70 + 2 * 4096]


# --- Folders that cannot be written


def test_folders_that_cannot_be_written(tmp_path, capsys, monkeypatch, model):
    (tmp_path / "file").write_text("mine")
    before = contents(tmp_path)
    inside = tmp_path / "file" / "inside"
    for command in (
        [*TRAIN, inside],
        [*COMPARE, inside],
        ["convert", model, inside / "out.keras", "--groups", "4"],
    ):
        error_of(capsys, *command)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    line = error_of(capsys, "benchmark", "--output", tmp_path / "rows.csv")
    assert "in a folder that can be written" in line
    assert contents(tmp_path) == before


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
        folder.mkdir()
        with lab.folder.locked(folder):
            line = error_of(capsys, *command, folder)
        assert "A folder takes one process at a time. Received: " in line
        assert not list(folder.iterdir())
        (folder / ".lock").touch()  # As one that was killed leaves it.
        assert cli.run([*command, str(folder)]) == 0
        assert not (folder / ".lock").exists()


@pytest.mark.parametrize("command", [TRAIN, COMPARE], ids=["train", "compare"])
def test_a_folder_is_locked_before_images_are_read(
    tmp_path, monkeypatch, command
):
    """So that another process waits for nothing, and destroys nothing."""
    folder = tmp_path / "new" / "run"

    def reading(directory):
        with pytest.raises(ValueError, match="takes one process at a time"):
            with lab.folder.locked(folder):
                pass
        raise ValueError("no images")

    monkeypatch.setitem(lab.data.sets.DATASETS, "tiny", reading)
    with pytest.raises(SystemExit, match="2"):
        cli.run([*command, str(folder)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [TRAIN, COMPARE], ids=["train", "compare"])
def test_what_another_process_finished_meanwhile_is_kept(
    tmp_path, capsys, monkeypatch, command
):
    module = lab.run if command is TRAIN else lab.comparison
    real, before = module.locked, {}

    def late(path):
        monkeypatch.setattr(module, "locked", real)
        assert cli.run([*command, str(path), "--learning-rate", "0.01"]) == 0
        before.update(contents(path))
        return real(path)

    monkeypatch.setattr(module, "locked", late)
    with pytest.raises(SystemExit, match="2"):
        cli.run([*command, str(tmp_path / "run")])
    assert "must be new or empty" in capsys.readouterr().err
    assert contents(tmp_path / "run") == before


def test_folders_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(ValueError, match=r"folder that is there or can be made"),
        lab.folder.locked(tmp_path / "file" / "inside"),
    ):
        pass
