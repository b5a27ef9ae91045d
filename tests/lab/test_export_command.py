"""`keras-tlgc export`: a file in, a file for another runtime out."""

import collections
import importlib
import re

import keras
import numpy as np
import pytest
from commands import error_of, output_of, rows_of
from exporting import (
    EXPORTERS_WARN,
    model_of,
    needs,
    needs_onnx,
    small_network,
)
from helpers import random, to_numpy

import keras_tlgc
from keras_tlgc import lab
from keras_tlgc.lab import exported

pytestmark = EXPORTERS_WARN
# The package has a function of the module's name.
deploying = importlib.import_module("keras_tlgc.rewrite.deploy")


def first_form(smallest):
    return lambda layer, forms, sizes: forms[0]


def save_both(folder):
    original = small_network()
    original.save(folder / "original.keras")
    model = keras_tlgc.convert(original, 4, verbose=0).model
    model.save(folder / "in.keras")
    return model


def exports(capsys, folder, target, *more):
    x = random(3, 10, 9, 3)
    np.save(folder / "x.npy", x)
    printed = output_of(
        capsys,
        *("export", folder / "in.keras", folder / target),
        *("--against", folder / "original.keras"),
        *("--data", folder / "x.npy", *more),
    )
    original, *_, row = rows_of(printed)
    assert original[0] == "original.keras" and row[0].startswith("in.keras")
    assert re.search(f"Written: .*{target}. Its outputs for 3 inputs", printed)
    assert (folder / target).exists()
    return row


@pytest.mark.backends("tensorflow", "torch", reason="JAX has no such nodes")
def test_onnx(tmp_path, capsys, monkeypatch):
    needs_onnx()
    import onnx

    # All as three convolutions, also where one would be cheaper.
    monkeypatch.setattr(deploying, "of_least", first_form)
    save_both(tmp_path)
    row = exports(capsys, tmp_path, "out.onnx")
    assert all(row)
    nodes = onnx.load(tmp_path / "out.onnx").graph.node
    kinds = collections.Counter(node.op_type for node in nodes)
    assert kinds["Conv"] == 1 + 3 * 3
    assert not {"Shape", "Gather", "Slice"} & {*kinds}
    # One before all, and one for each addend of the last layer.
    assert kinds["Transpose"] <= 3


@pytest.mark.backends("tensorflow", "torch", reason="JAX has no such nodes")
def test_onnx_pads_within_convolutions(tmp_path):
    """PyTorch needs a node for zeros that are not as many on both sides."""
    needs_onnx()
    import onnx

    first = keras.layers.Conv2D(8, 3, 2, "same", activation="relu")
    model = model_of((16, 16, 3), first, keras.layers.Conv2D(8, 3, 2, "same"))
    exported.write(model, tmp_path / "out.onnx")
    nodes = onnx.load(tmp_path / "out.onnx").graph.node
    kinds = collections.Counter(node.op_type for node in nodes)
    assert kinds["Conv"] == 2 and kinds["Pad"] <= 1  # That of the input.
    assert "Shape" not in kinds


@pytest.mark.backends("tensorflow", reason="it alone writes these formats")
@pytest.mark.parametrize("target", ["out.tflite", "out"])
def test_formats_of_tensorflow(target, tmp_path, capsys):
    needs("tensorflow")
    save_both(tmp_path)
    exports(capsys, tmp_path, target)


@pytest.mark.backends("tensorflow", "torch", reason="JAX exports no groups")
def test_integers(tmp_path, capsys, monkeypatch):
    needs_onnx()
    import onnx

    # All as three convolutions: a grouped one of integers has been wrong.
    monkeypatch.setattr(deploying, "of_least", first_form)
    save_both(tmp_path)
    exports(capsys, tmp_path, "out.onnx", "--int8")
    kernels = [
        one
        for one in onnx.load(tmp_path / "out.onnx").graph.initializer
        if one.data_type == onnx.TensorProto.INT8 and len(one.dims) == 4
    ]
    assert len(kernels) == 1 + 3 * 3
    if keras.backend.backend() == "tensorflow":
        exports(capsys, tmp_path, "out.tflite", "--int8")
    else:
        line = error_of(
            capsys,
            *("export", tmp_path / "in.keras", tmp_path / "out.tflite"),
            *("--int8", "--data", tmp_path / "x.npy"),
        )
        assert "Integers of 8 bits are for OUT.onnx or, from Te" in line


@pytest.mark.once
def test_the_accuracy_on_a_data_set(tmp_path, capsys, monkeypatch):
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    model.save(tmp_path / "in.keras")
    monkeypatch.setattr(
        "keras_tlgc.lab.exported.write", lambda *_: (tmp_path / "out").mkdir()
    )
    monkeypatch.setattr(
        "keras_tlgc.lab.exported.runner",
        lambda path, threads: lambda x: model.predict_on_batch(x),
    )
    data = lab.load_data("mnist5k")
    found = model.predict(data.pixels_test, verbose=0).argmax(-1)
    command = "export", tmp_path / "in.keras", tmp_path / "out"
    printed = output_of(capsys, *command, "--data", "mnist5k")
    [[*_, accuracy]] = rows_of(printed)
    assert accuracy == f"{100 * np.mean(found == data.y_test):.2f}"


def test_a_difference_is_an_error(tmp_path, capsys, monkeypatch):
    needs_onnx()
    save_both(tmp_path)
    monkeypatch.setattr(
        "keras_tlgc.lab.exported.runner",
        lambda path, threads: lambda x: np.ones((1, 8), "float32"),
    )
    files = tmp_path / "in.keras", tmp_path / "out.onnx"
    line = error_of(capsys, "export", *files)
    assert "must give the outputs of Keras. Received: a difference of" in line


@pytest.mark.once
def test_what_is_refused(tmp_path, capsys, monkeypatch):
    save_both(tmp_path)
    source = tmp_path / "in.keras"
    for target, more, message in [
        ("out.pb", [], "`the suffix of OUT` must be one of.*pb"),
        ("in.keras.onnx", [], "OUT must not exist yet.*--overwrite"),
        ("out.onnx", ["--data", tmp_path / "x.npy"], "--data must hold.*10, 9"),
        ("out.onnx", ["--data", "digits"], "`data` must be one of.*mnist5k"),
        ("out.onnx", ["--int8"], "--int8 without --data"),
        (
            "out.onnx",
            ["--data", tmp_path / "x.npy", "--data-dir", tmp_path],
            "--data-dir without a data set",
        ),
    ]:
        (tmp_path / "in.keras.onnx").write_text("")
        np.save(tmp_path / "x.npy", random(2, 5, 5, 3))
        line = error_of(capsys, "export", source, tmp_path / target, *more)
        assert re.search(message, line), line

    def fails(*_):
        raise ImportError("No module named 'onnxscript'.\nAnd more.")

    monkeypatch.setattr("keras_tlgc.lab.exported.write", fails)
    line = error_of(capsys, "export", source, tmp_path / "out.onnx")
    assert re.search(
        r"needs packages.*Received: No module.*'\. Run pip install .*export",
        line,
    ), line
    free = keras.Sequential(
        [keras.Input((None, 8, 3)), keras.layers.Conv2D(4, 3)]
    )
    free.save(source)
    line = error_of(capsys, "export", source, tmp_path / "out.onnx")
    assert "must have one input, of a fixed size. Received:" in line


@pytest.mark.backends("tensorflow", "torch", reason="JAX has no such nodes")
def test_a_layer_is_timed_without_transpositions(monkeypatch):
    needs_onnx()
    kept = []
    write = exported.runner
    monkeypatch.setattr(
        exported, "runner", lambda path, n: kept.append(n) or write(path, n)
    )
    inputs = keras.Input((6, 5, 8))
    conv = keras.layers.Conv2D(4, 3, use_bias=False)
    model = keras.Model(inputs, conv(inputs))
    found = exported.in_onnxruntime(model)()
    assert kept == [1]  # Thread.
    # The channels come first, as the kernels of the runtime have them.
    expected = to_numpy(model(np.ones((1, 6, 5, 8))))
    np.testing.assert_allclose(
        found, np.moveaxis(expected, -1, 1), rtol=1e-4, atol=1e-5
    )


@pytest.mark.once
def test_what_is_missing_for_a_runtime(tmp_path, capsys, monkeypatch):
    def missing(model):
        raise ImportError("No module named 'onnxruntime'")

    monkeypatch.setattr(exported, "in_onnxruntime", missing)
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(8, 3, strides=4),
            keras.layers.Conv2D(8, 3),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )
    model.save(tmp_path / "in.keras")
    command = ["convert", tmp_path / "in.keras", "--dry-run", "--budget", "0.5"]
    command += ["--data", "mnist5k", "--images", "40", "--of", "time"]
    error = error_of(capsys, *command, "--runtime", "onnxruntime")
    assert "pip install 'keras-tlgc[export]'" in error
