"""`keras-tlgc convert`: a file in, a file out, and what it refuses."""

import keras
import numpy as np
from commands import error_of
from helpers import random, to_numpy

import keras_tlgc
from keras_tlgc import cli, lab


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
            {"groups": keras_tlgc.rewrite.largest_divisor(3)},
        ),
        (
            ["--up-to", "3", "--multiple-of", "2"],
            {"groups": keras_tlgc.rewrite.largest_divisor(3, 2)},
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


def test_code_runs_only_where_the_user_asks_for_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved("lambda.keras", keras.layers.Lambda(lambda x: 2 * x))
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


def test_layers_are_fitted_on_a_data_set(tmp_path, capsys, monkeypatch):
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(8, 3, strides=4, name="first"),
            keras.layers.Conv2D(8, 3, name="second"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10),
        ]
    )
    model.save(tmp_path / "in.keras")
    command = ["convert", str(tmp_path / "in.keras"), "--groups", "2"]
    command += ["--data", "mnist5k", "--images", "40", "--dry-run"]
    assert cli.run(command) == 0
    printed = capsys.readouterr().out
    assert "output error" in printed and "; score 0." in printed
    budgeted = [*command[:2], *command[4:], "--budget", "0.6"]
    assert cli.run(budgeted) == 0
    printed = capsys.readouterr().out
    assert "expected error" in printed
    assert "of the original's multiply_adds, of a budget of 0.6" in printed
    assert cli.run([*budgeted, "--of", "exchange", "--mesh", "1x2"]) == 0
    assert "of the original's exchange" in capsys.readouterr().out
    tuned = [*command[:-1], str(tmp_path / "out.keras"), "--finetune", "1"]
    assert cli.run(tuned) == 0
    assert "Fine-tuned: score 0." in capsys.readouterr().out
    assert (tmp_path / "out.keras").exists()
    monkeypatch.setattr(lab, "load_data", lambda *_: "files")
    error = error_of(capsys, *command)
    assert "--data must be a data set that is held in memory" in error
