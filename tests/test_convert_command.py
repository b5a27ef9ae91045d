"""`keras-tlgc convert`: a file in, a file out, and what it refuses."""

import zipfile

import keras
import numpy as np
import pytest
from helpers import random, to_numpy
from test_cli import error_of

import keras_tlgc
from keras_tlgc import cli


def saved(path, *more):
    model = keras.Sequential(
        [
            keras.Input((6, 6, 8)),
            keras.layers.Conv2D(12, 3, name="first"),
            keras.layers.Conv2D(16, 3, activation="relu", name="second"),
            *more,
        ]
    )
    model.compile("sgd", "mse")
    model.save(path)
    return model


def outputs_of(model):
    return to_numpy(model(random(2, 6, 6, 8)))


def test_a_file_is_converted(tmp_path, capsys):
    model = saved(tmp_path / "in.keras")
    expected, report = keras_tlgc.convert(model, 4, where="second")
    files = [tmp_path / "in.keras", tmp_path / "out.keras"]

    options = ["--groups", "4", "--where", "second"]
    assert cli.run(["convert", *map(str, files), *options]) == 0

    new = keras.saving.load_model(files[1])
    np.testing.assert_allclose(
        outputs_of(new), outputs_of(expected), rtol=1e-5, atol=1e-6
    )
    printed = capsys.readouterr().out
    assert report.summary in printed
    assert "`where` does not select it" in printed
    assert f"{report.converted[0].error:.3f}" in printed
    assert f"Written: {files[1]}" in printed
    assert sorted(tmp_path.iterdir()) == sorted(files)


def test_options_are_those_of_convert(tmp_path, capsys):
    model = saved(tmp_path / "in.keras")
    files = [tmp_path / "in.keras", tmp_path / "out.keras"]
    for options, arguments in [
        (
            ["--up-to", "3"],
            {"groups": keras_tlgc.conversion.largest_divisor(3)},
        ),
        (["--groups", "2", "--conv", "group"], {"groups": 2, "conv": "group"}),
        (
            ["--groups", "4", "--coarse-channels", "2"],
            {"groups": 4, "coarse_channels": 2},
        ),
    ]:
        command = ["convert", *map(str, files), "--overwrite", *options]
        assert cli.run(command) == 0
        _, report = keras_tlgc.convert(model, **arguments)
        assert report.summary in capsys.readouterr().out
    assert cli.run([*command, "--weights", "random"]) == 0
    assert not np.allclose(
        outputs_of(keras.saving.load_model(files[1])),
        outputs_of(keras_tlgc.convert(model, **arguments).model),
    )


def test_a_dry_run_only_prints(tmp_path, capsys):
    saved(tmp_path / "in.keras")
    command = ["convert", str(tmp_path / "in.keras"), "--groups", "4"]
    assert cli.run([*command, "--dry-run"]) == 0
    assert "2 of 2 convolutions converted" in capsys.readouterr().out
    assert len(list(tmp_path.iterdir())) == 1


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    """A folder with a model, and with files that are none."""
    monkeypatch.chdir(tmp_path)
    saved("in.keras")
    saved("lambda.keras", keras.layers.Lambda(lambda x: 2 * x))
    (tmp_path / "there.keras").write_text("mine")
    (tmp_path / "text.keras").write_text("text")
    with zipfile.ZipFile("zip.keras", "w") as archive:
        archive.writestr("a", "b")
    with (
        zipfile.ZipFile("in.keras") as archive,
        zipfile.ZipFile("foreign.keras", "w") as foreign,
    ):
        for name in archive.namelist():
            data = archive.read(name)
            data = data.replace(b'"Conv2D"', b'"Conv9D"')
            foreign.writestr(name, data)
    return tmp_path


BAD = [
    (["in.keras", "out.keras"], "number of groups must be given once"),
    (
        ["in.keras", "out.keras", "--groups", "4", "--up-to", "4"],
        "must be given once. Received: --groups 4 and --up-to 4",
    ),
    (["in.keras", "--groups", "4"], "OUT.keras must be a file of this suffix"),
    (
        ["in.keras", "out.h5", "--groups", "4"],
        "OUT.keras must be a file of this suffix",
    ),
    (
        ["in.keras", "nowhere/out.keras", "--groups", "4"],
        "in a folder that exists. Received: nowhere/out.keras",
    ),
    (
        ["in.keras", "there.keras", "--groups", "4"],
        "OUT.keras must not exist yet. Received: there.keras",
    ),
    (["no.keras", "out.keras", "--groups", "4"], "which does not exist"),
    (["text.keras", "out.keras", "--groups", "4"], "which is not one"),
    (["zip.keras", "out.keras", "--groups", "4"], "that Keras can load"),
    (
        ["foreign.keras", "out.keras", "--groups", "4"],
        "Install the packages that its layers are from",
    ),
    (
        ["lambda.keras", "out.keras", "--groups", "4"],
        "A model must hold no code. Received: lambda.keras",
    ),
    (
        ["in.keras", "out.keras", "--groups", "5"],
        "There must be a convolution to convert",
    ),
    (
        ["in.keras", "out.keras", "--groups", "4", "--where", "["],
        "`where` must be a regular expression",
    ),
    (["in.keras", "out.keras", "--groups", "0"], "`groups` must be a positive"),
    (["in.keras", "out.keras", "--up-to", "0"], "`limit` must be a positive"),
    (
        ["in.keras", "out.keras", "--groups", "4", "--weights", "none"],
        "`weights` must be one of",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=str)
def test_bad_files_and_options(in_folder, capsys, arguments, message):
    line = error_of(capsys, "convert", *arguments)
    assert message in line
    assert len(line) < 600
    assert not (in_folder / "out.keras").exists()
    assert (in_folder / "there.keras").read_text() == "mine"


def test_code_runs_only_where_the_user_asks_for_it(in_folder):
    expected = outputs_of(
        keras_tlgc.convert(
            keras.saving.load_model("lambda.keras", safe_mode=False), 4
        ).model
    )
    command = ["convert", "lambda.keras", "out.keras", "--groups", "4"]
    assert cli.run([*command, "--no-safe-mode"]) == 0
    # What it did is written down as operations, which are safe to load.
    new = keras.saving.load_model("out.keras")
    np.testing.assert_allclose(outputs_of(new), expected, rtol=1e-5, atol=1e-6)
