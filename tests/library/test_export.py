"""Models out of Keras: `model.export`, and quantization.

`docs/export.md` has the table that these tests stand behind. Packages that
Keras' exporters need and that are not installed skip their tests.
"""

import re
import textwrap
from pathlib import Path

import keras
import numpy as np
import pytest
from exporting import (
    EXPORTERS_WARN,
    MODELS,
    TARGETS,
    converted,
    litert,
    model_of,
    needs_onnx,
    onnx,
    run_onnx,
)
from helpers import random

from keras_tlgc.layers import TwoLevelGroupConv2D, TwoLevelGroupConv3D
from keras_tlgc.rewrite import fold_batch_norm

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
BACKEND = keras.backend.backend()

pytestmark = EXPORTERS_WARN


# Keras' own Conv3D cannot be exported to ONNX either: from JAX at all, from
# PyTorch with channels last and any batch size.
KERAS_CANNOT = {
    ("onnx", "jax"): ["3D"],
    ("onnx", "torch"): ["3D"],
    # Nor can Conv3D(groups=N).
    ("litert, fixed batch", "torch"): ["3D"],
}


# TensorFlow forgets the channels of what is padded by sizes at run time.
# jax2onnx does not decide on the padding of a free size.
CANNOT = {
    ("litert", "tensorflow"): ["any size, wide coarse window"],
    ("onnx", "jax"): ["any size", "any size, wide coarse window"],
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("target", TARGETS)
def test_outputs_are_equal(target, name, tmp_path):
    if name in CANNOT.get((target, BACKEND), []):
        pytest.skip("docs/export.md asks for fixed sizes here")
    if name in KERAS_CANNOT.get((target, BACKEND), []):
        pytest.skip("Keras cannot export its own layer of this kind either")
    model = MODELS[name]()
    # Windows of 3 and 5 by strides of 2 and 3 pad these sizes differently.
    x = random(3, *(size or 18 for size in model.input_shape[1:]))
    other = random(1, *(size or 13 for size in model.input_shape[1:]))
    expected = keras.ops.convert_to_numpy(model(x))
    if "fixed" in target:
        signature = [keras.InputSpec(shape=x.shape, dtype="float32")]
        exported = TARGETS[target](model, tmp_path, signature)
        batches = [(x, expected)]
    else:
        exported = TARGETS[target](model, tmp_path)
        batches = [
            (x, expected),
            (other, keras.ops.convert_to_numpy(model(other))),
        ]
    for batch, y in batches:
        np.testing.assert_allclose(exported(batch), y, rtol=1e-4, atol=1e-5)
    assert np.std(expected) > 1e-2  # There is something to compare.


# --- What does not work, here and in Keras ------------------------------------


@pytest.mark.skipif(BACKEND != "tensorflow", reason="how TensorFlow has it")
def test_onnx_from_tensorflow_needs_another_lowering_than_native(tmp_path):
    needs_onnx()
    grouped = [
        keras.layers.Conv2D(8, 3, groups=4),
        TwoLevelGroupConv2D(8, 3, groups=4, lowering="native"),
    ]
    x = random(2, 7, 6, 8)
    for layer in grouped:
        model = model_of((7, 6, 8), layer)
        expected = model(x)
        with pytest.raises(Exception, match="PartitionedCall"):
            onnx(model, tmp_path)
    layer.lowering = "slices"  # What the page advises.
    np.testing.assert_allclose(
        onnx(model, tmp_path)(x), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.skipif(BACKEND != "jax", reason="how JAX has it")
def test_what_keras_cannot_do_on_jax(tmp_path):
    model = model_of((7, 6, 8), keras.layers.Conv2D(8, 3))
    with pytest.raises(ValueError, match="LiteRT export requires"):
        model.export(tmp_path / "model.tflite", format="litert")
    with pytest.raises(ValueError, match="has never called"):
        model.export(tmp_path / "model.onnx", format="onnx")
    needs_onnx()
    for kind in (keras.layers.Conv3D, TwoLevelGroupConv3D):
        model = model_of((5, 4, 6, 8), kind(8, 2, groups=4))
        model(random(1, 5, 4, 6, 8))
        with pytest.raises(NotImplementedError, match="conv layouts"):
            onnx(model, tmp_path)


@pytest.mark.skipif(BACKEND != "torch", reason="how PyTorch has it")
@pytest.mark.parametrize("kind", [keras.layers.Conv3D, TwoLevelGroupConv3D])
def test_what_keras_cannot_do_on_torch(kind, tmp_path):
    import torch

    needs_onnx()
    model = model_of((5, 4, 6, 8), kind(8, 2, groups=4))
    model(random(1, 5, 4, 6, 8))
    with pytest.raises(torch.onnx.errors.SymbolicValueError, match="format"):
        onnx(model, tmp_path)


# --- int8 ---------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`")
def test_quantize_leaves_our_layers_as_they_are():
    model = converted()
    x = random(4, *model.input_shape[1:])
    expected = model.predict(x, verbose=0)
    with pytest.warns(UserWarning, match="TwoLevelGroupConv2D does not have"):
        model.quantize("int8")
    policies = {type(v).__name__: v.dtype_policy.name for v in model.layers}
    assert policies["TwoLevelGroupConv2D"] == policies["Conv2D"] == "float32"
    assert policies["Dense"] == "int8_from_float32"
    y = model.predict(x, verbose=0)
    atol = 0.05 * np.abs(expected).max()
    np.testing.assert_allclose(y, expected, atol=atol)
    assert np.abs(y - expected).max() > 0


@pytest.mark.parametrize("mode", ["int8", "int4", "float8"])
def test_quantize_of_one_layer_says_that_it_cannot(mode):
    layer = TwoLevelGroupConv2D(8, 3, groups=4)
    layer.build((None, 7, 6, 8))
    with pytest.raises(
        NotImplementedError,
        match="TwoLevelGroupConv2D does not have a `quantize` method",
    ):
        layer.quantize(mode)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a converter's options")
def test_int8_in_litert(tmp_path):
    import tensorflow as tf

    model = fold_batch_norm(converted())
    x = random(32, *model.input_shape[1:])
    expected = model.predict(x, verbose=0)
    signature = [keras.InputSpec(shape=(1, *x.shape[1:]), dtype="float32")]
    exported = litert(
        model,
        tmp_path,
        signature,
        optimizations=[tf.lite.Optimize.DEFAULT],
        representative_dataset=lambda: ([image[None]] for image in x),
        target_spec={"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]},
    )
    y = np.concatenate([exported(image[None]) for image in x])
    atol = 0.05 * np.abs(expected).max()
    np.testing.assert_allclose(y, expected, atol=atol)
    assert np.abs(y - expected).max() > 1e-4


def test_int8_in_onnx(tmp_path):
    needs_onnx()
    from onnxruntime import quantization

    model = fold_batch_norm(converted())
    x = random(32, *model.input_shape[1:])
    expected = keras.ops.convert_to_numpy(model(x))
    onnx(model, tmp_path)

    class Calibration(quantization.CalibrationDataReader):
        batches = iter([x])

        def get_next(self):
            import onnxruntime

            session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
            name = session.get_inputs()[0].name
            return next(({name: batch} for batch in self.batches), None)

    quantization.quantize_static(
        tmp_path / "model.onnx", tmp_path / "int8.onnx", Calibration()
    )
    y = run_onnx(tmp_path / "int8.onnx")(x)
    atol = 0.05 * np.abs(expected).max()
    np.testing.assert_allclose(y, expected, atol=atol)
    assert np.abs(y - expected).max() > 1e-4


# --- The page -----------------------------------------------------------------


def test_snippets_of_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keras.config.set_image_data_format("channels_last")
    page = PAGE.read_text()
    snippets = re.findall(r"^ *```python\n(.*?)^ *```", page, re.M | re.S)
    assert len(snippets) == 5
    if BACKEND != "tensorflow":
        assert "On the TensorFlow backend" in snippets.pop()
    needs_onnx()
    names = {}
    for snippet in snippets:
        exec(textwrap.dedent(snippet), names)
