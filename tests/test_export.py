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
from helpers import random

import keras_tlgc
from keras_tlgc.folding import fold_batch_norm
from keras_tlgc.layers import (
    GroupConv2D,
    ShuffleGroupConv2D,
    TwoLevelGroupConv1D,
    TwoLevelGroupConv2D,
    TwoLevelGroupConv3D,
)

PAGE = Path(__file__).parent.parent / "docs" / "export.md"
BACKEND = keras.backend.backend()

pytestmark = [
    # Of the packages that Keras exports with, and of how it calls them.
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        "In the future `np.object`:FutureWarning",  # tf2onnx
        "The `native_serialization` parameter:DeprecationWarning",  # JAX
        ".*legacy TorchScript-based ONNX export:DeprecationWarning",
        "The feature will be removed:DeprecationWarning",  # torch.onnx
        "Constant folding - Only steps=1:UserWarning",  # torch.onnx
        "`isinstance.treespec, LeafSpec:FutureWarning",  # torch.onnx
        "Converting a tensor to a Python",  # torch.jit
        ".* tf.lite.Interpreter is deprecated:UserWarning",
    )
]


# --- What is exported ---------------------------------------------------------


def model_of(shape, *layers):
    x = inputs = keras.Input(shape)
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x)


def small_network():
    """A network as one has it before `convert`: 3 of 4 can be converted."""
    layers = keras.layers
    inputs = keras.Input((10, 9, 3))
    x = layers.Conv2D(16, 3, padding="same", use_bias=False)(inputs)
    x = start = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Conv2D(16, 3, padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Add()([start, layers.Conv2D(16, 3, padding="same")(x)])
    x = layers.Conv2D(32, 1, strides=2, use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(8)(x))
    for variable in model.weights:
        if variable.name in ("gamma", "moving_variance"):
            variable.assign(random(*variable.shape) ** 2 + 0.5)
        elif variable.name in ("beta", "moving_mean"):
            variable.assign(random(*variable.shape))
    return model


def converted():
    model, report = keras_tlgc.convert(small_network(), groups=4)
    assert len(report.converted) == 3
    return model


# Of every lowering: `_slices` has a kernel for several groups from 17 groups
# on, and below 16 channels in each.
MODELS = {
    "1D, causal": lambda: model_of(
        (9, 8), TwoLevelGroupConv1D(8, 3, padding="causal", groups=4)
    ),
    "2D": lambda: model_of(
        (7, 6, 8), TwoLevelGroupConv2D(8, 3, padding="same", groups=4)
    ),
    "2D, strided": lambda: model_of(
        (7, 6, 64),
        TwoLevelGroupConv2D(64, 3, strides=2, padding="same", groups=4),
    ),
    "1x1, strided": lambda: model_of(
        (7, 6, 64), TwoLevelGroupConv2D(64, 1, strides=2, groups=4)
    ),
    "32 groups": lambda: model_of(
        (5, 6, 64), TwoLevelGroupConv2D(64, 3, groups=32)
    ),
    "64 groups": lambda: model_of(
        (5, 6, 64),
        TwoLevelGroupConv2D(128, 3, groups=64, coarse_channels=2),
    ),
    "small coarse window": lambda: model_of(
        (7, 6, 64), TwoLevelGroupConv2D(64, 3, groups=4, coarse_kernel_size=1)
    ),
    "channels first": lambda: model_of(
        (8, 7, 6),
        TwoLevelGroupConv2D(8, 3, groups=4, data_format="channels_first"),
    ),
    "any size": lambda: model_of(
        (None, None, 8),
        TwoLevelGroupConv2D(8, 3, padding="same", groups=4),
        TwoLevelGroupConv2D(8, 1, strides=2, groups=4),
    ),
    "3D": lambda: model_of(
        (5, 4, 6, 8), TwoLevelGroupConv3D(8, 2, groups=4, activation="relu")
    ),
    "one level": lambda: model_of((7, 6, 8), GroupConv2D(8, 3, groups=4)),
    "shuffle": lambda: model_of((7, 6, 8), ShuffleGroupConv2D(8, 3, groups=4)),
    "converted": converted,
    "converted, folded": lambda: fold_batch_norm(converted()),
}

# Keras' own Conv3D cannot be exported to ONNX either: from JAX at all, from
# PyTorch with channels last and any batch size.
KERAS_CANNOT = {
    ("onnx", "jax"): ["3D"],
    ("onnx", "torch"): ["3D"],
    # Nor can Conv3D(groups=N).
    ("litert, fixed batch", "torch"): ["3D"],
}


# --- Where it goes ------------------------------------------------------------


def needs(*modules):
    for module in modules:
        pytest.importorskip(
            module, reason=f"Keras needs it here, or the test does: {module}"
        )


def saved_model(model, folder):
    needs("tensorflow")
    import tensorflow as tf

    model.export(folder / "model", verbose=False)
    loaded = tf.saved_model.load(folder / "model")
    return lambda x: loaded.serve(x).numpy()


def needs_onnx():
    converters = {"tensorflow": "tf2onnx", "jax": "jax2onnx"}
    needs(converters.get(BACKEND, "onnxscript"), "onnxruntime")


def onnx(model, folder, signature=None):
    needs_onnx()
    file = folder / "model.onnx"
    model.export(file, format="onnx", verbose=False, input_signature=signature)
    return run_onnx(file)


def run_onnx(file):
    import onnxruntime

    session = onnxruntime.InferenceSession(
        file, providers=["CPUExecutionProvider"]
    )
    [name] = [node.name for node in session.get_inputs()]
    return lambda x: session.run(None, {name: x})[0]


def litert(model, folder, signature=None, **options):
    needs("litert_torch" if BACKEND == "torch" else "tensorflow")
    file = str(folder / "model.tflite")
    model.export(
        file,
        format="litert",
        verbose=False,
        input_signature=signature,
        **options,
    )
    if BACKEND == "torch":
        from ai_edge_litert.interpreter import Interpreter
    else:
        from tensorflow import lite

        Interpreter = lite.Interpreter
    interpreter = Interpreter(file)
    [entry], [result] = (
        interpreter.get_input_details(),
        interpreter.get_output_details(),
    )

    def run(x):
        interpreter.resize_tensor_input(entry["index"], x.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(entry["index"], x)
        interpreter.invoke()
        return interpreter.get_tensor(result["index"])

    return run


def torch_program(model, folder, signature):
    import torch

    model.export(
        folder / "model.pt2",
        format="torch",
        verbose=False,
        input_signature=signature,
    )
    program = torch.export.load(folder / "model.pt2")
    # Sizes that the graph would compute are what LiteRT cannot take.
    assert "aten.item" not in {
        str(node.target)[:9] for node in program.graph.nodes
    }
    run = program.module()
    return lambda x: run(torch.from_numpy(x)).detach().numpy()


FORMATS = {
    "tensorflow": {
        "tf_saved_model": saved_model,
        "onnx": onnx,
        "litert": litert,
    },
    "jax": {"tf_saved_model": saved_model, "onnx": onnx},
    "torch": {
        "onnx": onnx,
        "onnx, fixed batch": onnx,
        "litert, fixed batch": litert,
        "torch, fixed batch": torch_program,
    },
}[BACKEND]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("target", FORMATS)
def test_outputs_are_equal(target, name, tmp_path):
    if name in KERAS_CANNOT.get((target, BACKEND), []):
        pytest.skip("Keras cannot export its own layer of this kind either")
    model = MODELS[name]()
    x = random(3, *(size or 7 for size in model.input_shape[1:]))
    expected = keras.ops.convert_to_numpy(model(x))
    if "fixed" in target:
        signature = [keras.InputSpec(shape=x.shape, dtype="float32")]
        exported = FORMATS[target](model, tmp_path, signature)
        batches = [(x, expected)]
    else:
        exported = FORMATS[target](model, tmp_path)
        batches = [(x, expected), (x[:1], expected[:1])]
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
    assert len(snippets) == 4
    if BACKEND != "tensorflow":
        assert "On the TensorFlow backend" in snippets.pop()
    needs_onnx()
    names = {}
    for snippet in snippets:
        exec(textwrap.dedent(snippet), names)
