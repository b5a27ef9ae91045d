"""`evaluate` and `predict`: trained models on images as they are stored."""

import csv
import json
import os
import shutil

import keras
import numpy as np
import pytest
from commands import error_of, output_of
from PIL import Image
from tiny import (
    drawn_figures,  # noqa: F401  A fixture.
    settings,
    tiny_digits,
    tiny_network,
    tiny_run,  # noqa: F401  A fixture.
)

from keras_tlgc.lab import evaluation, train
from keras_tlgc.lab.evaluation import Classifier

pytestmark = pytest.mark.usefixtures("tiny_run")
SHORT = {"epochs": 1, "learning_rate": 0.003}


@pytest.fixture
def trained(tmp_path):
    """A run that errs now and then."""
    return train(settings(**SHORT), tmp_path / "run", verbose=0)


def accuracy(result, count=24):
    return f"Accuracy: {result.accuracy:.2%} of {count} images."


def write_digits(folder, names="012"):
    """Write the test images to files in folders of their classes."""
    *_, pixels, labels = tiny_digits()
    for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        path = folder / names[label] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0].round().astype("uint8")).save(path)


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_evaluate(tmp_path, capsys, data_format):
    keras.config.set_image_data_format(data_format)
    result = train(settings(**SHORT), tmp_path / "run", verbose=0)
    picture = tmp_path / "confusion.png"
    out = output_of(capsys, "evaluate", result.folder, "--confusion", picture)
    assert out.splitlines() == [accuracy(result), f"Written: {picture}"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    write_digits(tmp_path / "digits")
    out = output_of(capsys, "evaluate", result.folder, tmp_path / "digits")
    assert out == f"{accuracy(result)}\n"
    # A file that is not in its run's folder.
    alone = shutil.copy(result.folder / "model.keras", tmp_path)
    out = output_of(capsys, "evaluate", alone, "--data", "tiny")
    assert out == f"{accuracy(result)}\n"


def test_predict(trained, tmp_path, capsys):
    output = tmp_path / "all.csv"
    out = output_of(capsys, "predict", trained.folder, "--output", output)
    assert out == f"Written: {output}, 24 predictions.\n"
    rows = rows_of(output)
    assert list(rows[0]) == ["file", "class", "probability"]
    *_, labels = tiny_digits()
    right = [
        row["class"] == str(y) for row, y in zip(rows, labels, strict=True)
    ]
    assert np.mean(right) == pytest.approx(trained.accuracy)
    assert all(1 / 3 <= float(row["probability"]) <= 1 for row in rows)
    write_digits(tmp_path / "digits")
    of_files = tmp_path / "files.csv"
    paths = next(tmp_path.glob("digits/2/*")), tmp_path / "digits"
    output_of(capsys, "predict", trained.folder, *paths, "--output", of_files)
    first, *others = rows_of(of_files)
    assert first["file"] == str(paths[0]) and len(others) == 24
    for row in others:
        number = int(os.path.basename(row["file"]).removesuffix(".png"))
        assert row["class"] == rows[number]["class"]


def test_names_of_classes(trained, tmp_path, capsys):
    """They say which class a folder is, whichever folders there are."""
    config = trained.folder / "config.json"
    content = json.loads(config.read_text())
    content["facts"]["class_names"] = ["one", "two", "three"]
    config.write_text(json.dumps(content))
    write_digits(tmp_path / "digits", ["one", "two", "three"])
    out = output_of(capsys, "evaluate", trained.folder, tmp_path / "digits")
    assert out == f"{accuracy(trained)}\n"
    shutil.rmtree(tmp_path / "digits" / "one")
    out = output_of(capsys, "evaluate", trained.folder, tmp_path / "digits")
    assert "of 16 images" in out
    output = tmp_path / "some.csv"
    output_of(capsys, "predict", trained.folder, "--output", output)
    assert {r["class"] for r in rows_of(output)} <= {"one", "two", "three"}
    (tmp_path / "digits" / "two").rename(tmp_path / "digits" / "four")
    line = error_of(capsys, "evaluate", trained.folder, tmp_path / "digits")
    assert "must be among those of the model. Received: four; the" in line


def test_a_run_of_version_0_1_0(trained, capsys):
    """Its model took normalised images, and `config.json` says how."""
    path = trained.folder / "model.keras"
    model = keras.saving.load_model(path)
    old = tiny_network(keras.Input((8, 8, 1)), 3)
    old.set_weights(model.get_weights())
    old.save(path)
    assert output_of(capsys, "evaluate", trained.folder) == (
        f"{accuracy(trained)}\n"
    )


def test_scores_that_are_no_probabilities(tmp_path):
    inputs = keras.Input((2, 2, 3))
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    model.layers[-1].set_weights([np.ones((12, 2)) * [1, 0], np.zeros(2)])
    model.save(tmp_path / "logits.keras")
    Image.new("RGB", (4, 4), "white").save(tmp_path / "white.jpg")
    classifier = Classifier(tmp_path / "logits.keras")
    images = classifier.images([str(tmp_path / "white.jpg")], 1)
    np.testing.assert_allclose(
        classifier.scores(images),
        [[1 / (1 + np.exp(-12)), 1 / (1 + np.exp(12))]],
        rtol=1e-3,
    )


@pytest.mark.parametrize("classes", [3, 40])
def test_confusion(tmp_path, figures, classes):
    scores = np.eye(classes)[[0, 1, 1, 2]]
    names = [f"kind {i}" for i in range(classes)]
    path = tmp_path / "confusion.png"
    evaluation.plot_confusion(np.array([0, 0, 1, 2]), scores, names, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    axes = figures[0].axes[0]
    counts = np.zeros((classes, classes))
    counts[:3, :3] = [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    np.testing.assert_array_equal(axes.images[0].get_array(), counts)
    assert len(axes.get_xticks()) == (3 if classes == 3 else 0)
    assert len(axes.texts) == (9 if classes == 3 else 0)
