"""Folders of images, read and cropped while a network trains."""

import json
import re
import runpy
from pathlib import Path

import keras
import numpy as np
import pytest
from tiny import (
    Interrupt,
    assert_same_run,
    settings,
    tiny_run,  # noqa: F401  A fixture.
)

from keras_tlgc.lab import Recipe, load_data, train
from keras_tlgc.lab.evaluation import Classifier

SIZE = 16
CLASSES = ["cat", "dog", "owl"]
RECIPE = Recipe(batch_size=4, augmentation="crops", image_size=SIZE)


def write_images(folder, count, seed):
    """Write images of three colours, of several sizes and formats."""
    rng = np.random.default_rng(seed)
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            shape = (*rng.integers(20, 40, 2), 3)
            pixels = rng.integers(0, 100, shape)
            pixels[..., label] += 120
            path = folder / name / f"{i}.{['JPEG', 'png', 'jpg'][i % 3]}"
            keras.utils.save_img(
                path, pixels, data_format="channels_last", scale=False
            )


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    write_images(folder / "train", 7, 0)
    write_images(folder / "val", 3, 1)
    (folder / "train" / "notes.txt").write_text("no class")
    (folder / "train" / "owl" / "notes.txt").write_text("no image")
    return folder


def epoch_of(batches, epoch):
    batches.set_epoch(epoch)
    images, labels = zip(
        *(batches[i] for i in range(len(batches))), strict=True
    )
    return np.concatenate(images), np.concatenate(labels)


@pytest.mark.usefixtures("tiny_run")
def test_files_of_other_kinds_are_counted(few, capsys, tmp_path_factory):
    (few / "val" / "owl" / "owl.psd").touch()
    (few / "train" / "cat" / "notes.txt").touch()
    run = settings(
        data="folder", data_dir=str(few), image_size=SIZE, batch_size=2
    )
    train(run, tmp_path_factory.mktemp("run"), verbose=2)
    printed = capsys.readouterr().out
    assert re.search(
        r"Passed over: 2 files .*\.webp, .*cat/notes\.txt", printed
    )


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("augmentation", ["none", "shifts", "crops"])
def test_batches(pictures, data_format, augmentation):
    keras.config.set_image_data_format(data_format)
    recipe = Recipe(4, 4, augmentation=augmentation)
    data = load_data("folder", pictures, SIZE)
    batches = data.train_batches(recipe, seed=0)
    assert len(batches) == 5  # The tail of one is left out.
    images, labels = epoch_of(batches, 0)
    assert images.shape == (20, *data.image_shape)
    assert images.dtype == np.uint8
    assert sorted(data.image_shape) == [3, SIZE, SIZE]
    # Each class has its colour: the crops go with their labels.
    axes = (1, 2) if data_format == "channels_last" else (2, 3)
    pixels = images.mean(axes)
    np.testing.assert_array_equal(pixels.argmax(-1), labels)
    assert 0 < pixels.min() and pixels.max() < 225


def test_epochs_can_be_repeated(pictures):
    def batches(seed):
        return load_data("folder", pictures, SIZE).train_batches(RECIPE, seed)

    one = batches(3)
    first, second = epoch_of(one, 0), epoch_of(one, 1)
    np.testing.assert_array_equal(epoch_of(one, 0)[0], first[0])
    np.testing.assert_array_equal(epoch_of(batches(3), 1)[0], second[0])
    assert not np.array_equal(first[1], second[1])
    assert not np.array_equal(first[1], epoch_of(batches(4), 0)[1])
    # Any batch can be had, as Keras looks at the first ones twice.
    np.testing.assert_array_equal(one[3][0], epoch_of(batches(3), 0)[0][12:16])
    np.testing.assert_array_equal(one[1][0], first[0][4:8])


def test_crops_differ_between_epochs(pictures):
    batches = load_data("folder", pictures, SIZE).train_batches(RECIPE, 0)
    of_path = []
    for epoch in (0, 1):
        images, _ = epoch_of(batches, epoch)
        of_path.append(
            dict(zip(batches.x[batches.order], images, strict=False))
        )
    both = of_path[0].keys() & of_path[1].keys()
    assert len(both) >= 19
    assert not any(np.array_equal(of_path[0][k], of_path[1][k]) for k in both)


def test_images_for_evaluation_come_in_their_order(pictures):
    data = load_data("folder", pictures, SIZE)
    batches = data.test_batches(4)
    assert [len(batches[i][1]) for i in range(len(batches))] == [4, 4, 1]
    images, labels = epoch_of(batches, 0)
    assert labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    np.testing.assert_array_equal(images, epoch_of(batches, 7)[0])


@pytest.mark.usefixtures("tiny_run")
@pytest.mark.parametrize(
    ("augmentation", "precision"),
    [("crops", "float32"), ("shifts", "mixed_bfloat16")],
)
def test_training_goes_on_after_a_kill(
    pictures, tmp_path, augmentation, precision
):
    run = settings(
        data="folder",
        data_dir=str(pictures),
        image_size=SIZE,
        batch_size=4,
        augmentation=augmentation,
        precision=precision,
    )
    result = train(run, tmp_path / "whole", verbose=0)
    classifier = Classifier(result.folder)
    assert classifier.class_names == CLASSES
    for images in (
        classifier.test_images(None, None, 4),
        classifier.labelled_images(pictures / "val", 4),
    ):
        found = classifier.scores(images).argmax(-1)
        assert np.mean(found == images.y) == pytest.approx(result.accuracy)
    with pytest.raises(Interrupt.Kill):
        train(run, tmp_path / "killed", 0, 0, 0, [Interrupt(1, 2)])
    train(run, tmp_path / "killed", resume=True, verbose=0)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    facts = json.loads((tmp_path / "whole" / "config.json").read_text())[
        "facts"
    ]
    assert (facts["train_images"], facts["test_images"]) == (21, 9)


@pytest.mark.parametrize("content", [b"", b"\x89PNG but no more", None])
def test_a_damaged_image(few, content):
    path = few / "train" / "dog" / "1.png"
    batches = load_data("folder", few, SIZE).train_batches(RECIPE, 0)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"must be whole.*dog/1\.png', which cannot be decoded"
    ):
        for epoch in (0, 1):  # One epoch may leave it out.
            epoch_of(batches, epoch)


def test_bad_folders(tmp_path):
    with pytest.raises(ValueError, match=r"needs a folder.*--data-dir"):
        load_data("folder")
    with pytest.raises(
        ValueError, match=r"train', which does not exist.*Image"
    ):
        load_data("folder", tmp_path)
    (tmp_path / "train" / "cat").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"train', which holds no images"):
        load_data("folder", tmp_path)
    (tmp_path / "train" / "cat").rmdir()
    write_images(tmp_path / "train", 1, 0)
    write_images(tmp_path / "val", 1, 0)
    (tmp_path / "val" / "owl").rename(tmp_path / "val" / "eel")
    with pytest.raises(
        ValueError, match=r"same classes.*2 are in one alone, as 'eel'"
    ):
        load_data("folder", tmp_path)


@pytest.fixture
def few(tmp_path):
    """A folder to change."""
    write_images(tmp_path / "train", 2, 0)
    write_images(tmp_path / "val", 1, 0)
    return tmp_path


def test_what_systems_hide_is_no_image(few):
    """As macOS and notebooks leave it."""
    before = load_data("folder", few, SIZE)
    (few / "train" / ".ipynb_checkpoints").mkdir()
    (few / "train" / "cat" / "._1.png").touch()
    (few / "train" / "cat" / "folder.png").mkdir()
    after = load_data("folder", few, SIZE)
    assert after.class_names == CLASSES
    np.testing.assert_array_equal(after.train[0], before.train[0])


def test_a_class_without_images(few):
    (few / "val" / "zebra").mkdir()
    (few / "val" / "zebra" / "1.psd").touch()
    with pytest.raises(
        ValueError, match=r"Every class must have images.*zebra', which holds"
    ):
        load_data("folder", few, SIZE)


def test_example(tmp_path, monkeypatch, capsys):
    script = Path(__file__).parents[2] / "examples/show_augmentation.py"
    picture = tmp_path / "picture.png"
    monkeypatch.setattr("sys.argv", [str(script), "--output", str(picture)])
    runpy.run_path(str(script), run_name="__main__")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == f"Written: {picture}\n"
