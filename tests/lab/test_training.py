import json

import keras
import numpy as np
import pytest
from tiny import (
    Interrupt,
    assert_same_run,
    contents,
    settings,
    tiny_digits,
    tiny_run,  # noqa: F401  A fixture.
)

from keras_tlgc import lab
from keras_tlgc.lab import Settings, folder, train
from keras_tlgc.lab.data import sets

pytestmark = pytest.mark.usefixtures("tiny_run")


def kill(run_settings, path, *moment):
    """Begin a run and stop it dead at the moment."""
    with pytest.raises(Interrupt.Kill):
        train(run_settings, path, verbose=0, callbacks=[Interrupt(*moment)])


def test_run_writes_what_it_says(tmp_path):
    result = train(settings(), tmp_path / "run", verbose=0)
    assert sorted(p.name for p in result.folder.iterdir()) == sorted(lab.FILES)
    config = json.loads((result.folder / "config.json").read_text())
    assert Settings.from_dict(config["settings"]) == settings()
    assert config["versions"]["keras"] == keras.__version__
    assert config["versions"]["backend"] == keras.backend.backend()
    assert (result.folder / "curves.png").read_bytes().startswith(b"\x89PNG")

    # The file takes the images as the data set stores them.
    model = keras.saving.load_model(result.folder / "model.keras")
    *_, pixels, labels = tiny_digits()
    for images in (pixels, pixels.round().astype("uint8")):
        _, accuracy = model.evaluate(images, labels, verbose=0)
        assert accuracy == pytest.approx(result.accuracy)
    assert config["facts"]["parameters"] == result.parameters
    rows = (result.folder / "history.csv").read_text().splitlines()
    assert len(rows) == 1 + 3


@pytest.mark.backends(
    "tensorflow", "torch", reason="test_mesh_commands.py resumes on JAX"
)
@pytest.mark.real_network
def test_wide_resnet_resumes_and_learns(tmp_path):
    real = settings(epochs=6, groups=2)
    train(real, tmp_path / "whole", verbose=0)
    kill(real, tmp_path / "killed", 3, 2)
    result = train(real, tmp_path / "killed", resume=True, verbose=0)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    assert result.accuracy > 0.9


@pytest.mark.parametrize(
    "moment", [(0, 2), (1, 0), (1, 3), (1, None), (2, None)], ids=str
)
def test_resumed_run_ends_like_an_uninterrupted_one(tmp_path, moment):
    train(settings(), tmp_path / "whole", verbose=0)
    kill(settings(), tmp_path / "killed", *moment)
    train(settings(), tmp_path / "killed", resume=True, verbose=0)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize(
    ("name", "when"),
    [
        (folder.CHECKPOINT, 2),  # The second epoch is in the history already.
        (folder.MODEL, 1),
        (folder.CURVES, 1),
    ],
)
def test_kill_while_a_file_is_written(tmp_path, monkeypatch, name, when):
    train(settings(), tmp_path / "whole", verbose=0)
    replace, seen = folder.os.replace, []

    def dying_replace(source, target):
        seen.append(target.name)
        if seen.count(name) == when and target.name == name:
            raise Interrupt.Kill
        replace(source, target)

    monkeypatch.setattr(folder.os, "replace", dying_replace)
    with pytest.raises(Interrupt.Kill):
        train(settings(), tmp_path / "killed", verbose=0)
    monkeypatch.setattr(folder.os, "replace", replace)
    train(settings(), tmp_path / "killed", resume=True, verbose=0)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_half_written_history_row_is_dropped(tmp_path):
    train(settings(), tmp_path / "whole", verbose=0)
    kill(settings(), tmp_path / "killed", 1, 2)
    with open(tmp_path / "killed" / "history.csv", "ab") as file:
        file.write(b"1,0.5,0.")
    train(settings(), tmp_path / "killed", resume=True, verbose=0)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("count", [-3, 3])
def test_other_images_are_no_run_to_go_on_with(tmp_path, monkeypatch, count):
    """Such as a folder of which images went, or into which more came."""
    kill(settings(), tmp_path, 1)
    before = contents(tmp_path)

    def other(directory=None):
        x, y, *test = tiny_digits()
        chosen = np.arange(len(x) + count) % len(x)
        return x[chosen], y[chosen], *test

    monkeypatch.setitem(sets.DATASETS, "tiny", other)
    with pytest.raises(
        ValueError, match=r"with its own images. Received: train_images=\d+; "
    ):
        train(settings(), tmp_path, resume=True, verbose=0)
    assert contents(tmp_path) == before


def test_history_with_the_ends_of_lines_of_windows(tmp_path):
    """Keras' CSVLogger writes each row's end twice there."""
    kill(settings(), tmp_path, 1, 2)
    path = tmp_path / "history.csv"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    train(settings(), tmp_path, resume=True, verbose=0)
    assert len(folder.RunFolder(tmp_path).history()) == 3


def test_callbacks_may_end_a_run(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    result = train(settings(), tmp_path, verbose=0, callbacks=[Stop()])
    assert len(folder.RunFolder(tmp_path).history()) == 1
    assert 0 <= result.accuracy <= 1


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    first = train(settings(), tmp_path / "run", verbose=0)
    before = {p.name: p.read_bytes() for p in first.folder.iterdir()}
    again = train(settings(), tmp_path / "run", resume=True, verbose=0)
    assert again == first
    assert before == {p.name: p.read_bytes() for p in first.folder.iterdir()}


def test_overwrite_replaces_the_run_alone(tmp_path):
    train(settings(seed=1), tmp_path / "run", verbose=0)
    (tmp_path / "run" / "notes.txt").write_text("mine")
    train(settings(), tmp_path / "run", overwrite=True, verbose=0)
    train(settings(), tmp_path / "new", verbose=0)
    assert_same_run(tmp_path / "run", tmp_path / "new")
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


BAD_SETTINGS = [
    ({"data": "imagenet"}, r"`data` must be one of .*data='imagenet'"),
    ({"model": "wrn-12-1"}, r"`depth` must be 6 b \+ 4.*Received: depth=12"),
    ({"conv": "dense"}, r"`conv` must be one of .*Received: conv='dense'"),
    ({"groups": 3}, r"`groups` must divide .*groups=3, but 'stage1_block1"),
    ({"coarse_channels": 0}, r"`coarse_channels` must be a positive integer"),
    (
        {"conv": "standard", "groups": 4},
        r"`groups` must be 1 for conv='standard'.*groups=4",
    ),
    ({"precision": "float8"}, r"`precision` must be one of .*'float8'"),
    ({"batch_size": 97}, r"`batch_size` must not exceed.*=97, 96 images"),
    ({"seed": -1}, r"`seed` must be an integer from 0.*seed=-1"),
]


@pytest.mark.real_network
@pytest.mark.parametrize(("changes", "message"), BAD_SETTINGS, ids=str)
def test_bad_settings_write_nothing(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(settings(**changes), tmp_path / "run", verbose=0)
    assert not (tmp_path / "run").exists()


def test_groups_default_by_kind():
    assert Settings(conv="standard").groups == 1
    assert Settings(conv="group").groups == 4


def test_existing_folder_is_kept(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(
        ValueError, match=r"must be new or empty.*holds thesis\.tex.*--resume"
    ):
        train(settings(), tmp_path, verbose=0)
    assert contents(tmp_path) == {"thesis.tex": b"years of work"}


@pytest.mark.real_network
def test_overwrite_with_bad_settings_keeps_the_run(tmp_path):
    (tmp_path / "model.keras").write_text("weeks of training")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="`groups` must divide"):
        train(settings(groups=5), tmp_path, overwrite=True, verbose=0)
    assert contents(tmp_path) == before


def test_resume_errors(tmp_path):
    path = tmp_path / "run"
    with pytest.raises(ValueError, match=r"--resume needs the folder of a run"):
        train(settings(), path, resume=True, verbose=0)
    with pytest.raises(ValueError, match=r"--resume and --overwrite exclude"):
        train(settings(), path, resume=True, overwrite=True, verbose=0)

    train(settings(), path, verbose=0)
    before = contents(path)
    with pytest.raises(
        ValueError,
        match=r"own settings. Received: epochs=9, seed=1; .*epochs=3, seed=0",
    ):
        train(settings(epochs=9, seed=1), path, resume=True, verbose=0)
    assert contents(path) == before

    config = json.loads((path / "config.json").read_text())
    config["versions"]["backend"] = "numpy"
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"has backend='numpy'"):
        train(settings(), path, resume=True, verbose=0)
