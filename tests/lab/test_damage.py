"""Damaged runs: one line that says so, and nothing is lost."""

import json
import shutil
from pathlib import Path

import keras
import pytest
from commands import error_of, output_of
from tiny import (
    Interrupt,
    contents,
    settings,
    tiny_digits,
    tiny_run,  # noqa: F401  A fixture.
)

from keras_tlgc import cli, lab
from keras_tlgc.lab.data.sets import DATASETS

pytestmark = [
    pytest.mark.real_network,  # The names of networks are read, too.
    pytest.mark.usefixtures("tiny_run"),
]
SETTINGS = {"model": "plain-1-8", "conv": "group", "groups": 1, "epochs": 2}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run, one that was interrupted, and a finished comparison."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS, "tiny", tiny_digits)
        lab.train(settings(**SETTINGS), folder / "finished", verbose=0)
        kill = [Interrupt(1, 2)]
        with pytest.raises(Interrupt.Kill):
            lab.train(
                settings(**SETTINGS),
                folder / "killed",
                verbose=0,
                callbacks=kill,
            )
        recipe = {"data": "tiny", "model": "plain-1-8", "epochs": 2}
        compared = lab.Comparison(["group"], [1], seeds=[0], recipe=recipe)
        lab.compare(compared, folder / "compared")
    return folder


@pytest.fixture
def copied(runs, tmp_path):
    """Return what copies one of the folders."""

    def copy(name):
        shutil.rmtree(tmp_path / name, True)
        return Path(shutil.copytree(runs / name, tmp_path / name))

    return copy


def assert_refused(capsys, folder, command, message):
    before = contents(folder)
    line = error_of(capsys, command, "--resume", "--output", folder)
    assert message in line
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("name", "command"), [("finished", "train"), ("compared", "compare")]
)
def test_configurations_that_are_none(copied, capsys, name, command):
    folder = copied(name)
    path = folder / "config.json"
    for text in (b"", b"{", b"[]", b"{}", b'{"settings": 5}', b"\xff\xfe{}"):
        path.write_bytes(text)
        assert_refused(capsys, folder, command, "cannot be read")


def test_wrong_settings_of_a_run(copied, capsys):
    folder = copied("finished")
    path = folder / "config.json"
    whole = json.loads(path.read_text())
    for key in ("epochs", "model", "conv", "precision", "more"):
        for value in (None, "x", -1, [], {"a": 1}):
            changed = {**whole["settings"], key: value}
            path.write_text(json.dumps({**whole, "settings": changed}))
            assert_refused(capsys, folder, "train", "Received: ")


def test_histories_that_were_cut(copied, capsys):
    """Before the run goes on, and not at its end."""
    for name in ("finished", "killed"):
        folder = copied(name)
        path = folder / "history.csv"
        head, first = path.read_bytes().splitlines(keepends=True)[:2]
        for text in (
            *(b"", head, head[:9], head + first[:9], b"\xff" + head + first),
            *(head + first.replace(b"0,", b"5,", 1), first),
        ):
            path.write_bytes(text)
            assert_refused(capsys, folder, "train", "history must have a row")
        path.unlink()
        assert_refused(capsys, folder, "train", "history must have a row")


def test_checkpoints_that_were_cut(copied, capsys):
    folder = copied("killed")
    path = folder / "checkpoint.weights.h5"
    whole = path.read_bytes()
    message = "needs the checkpoint that the run wrote"
    for text in (b"", b"text", whole[:99], whole[: len(whole) // 2]):
        path.write_bytes(text)
        assert_refused(capsys, folder, "train", message)
    other = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    other.save_weights(path)
    assert_refused(capsys, folder, "train", message)
    # The remedy that the message names.
    path.unlink()
    output_of(capsys, "train", "--resume", "--output", folder)


def test_times_that_were_cut(copied):
    """They decide nothing: what cannot be read is left out."""
    folder = copied("killed")
    for text in (b"", b"epoch,seconds\n0,", b"\xff\n0,nan\nx,1\n1", b"\0" * 9):
        (folder / "times.csv").write_bytes(text)
        assert lab.RunFolder(folder).seconds() == []
    (folder / "times.csv").write_text("epoch,seconds\n0,9.5\n0,1.5\n1,2.5\n")
    assert lab.RunFolder(folder).seconds() == [1.5, 2.5]


def test_a_comparison_of_damaged_runs(copied, capsys):
    """A failure in the table, and the run is not trained over."""
    folder = copied("compared")
    path = next(folder.glob("runs/*/history.csv"))
    before = contents(path.parent)
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(SystemExit, match="2"):
        cli.run(["compare", "--resume", "--output", str(folder)])
    captured = capsys.readouterr()
    assert "1 of 1 runs failed" in captured.err
    assert "Traceback" not in captured.out + captured.err
    after = contents(path.parent)
    assert after.pop("traceback.txt")
    assert {**after, "history.csv": before["history.csv"]} == before
