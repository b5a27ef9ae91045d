"""Models to export, and where Keras exports them to."""

import keras
import pytest
from cases import BACKEND
from helpers import random

import keras_tlgc
from keras_tlgc.layers import (
    BalancedGroupConv2D,
    GroupConv2D,
    LowRankConv2D,
    ShuffleGroupConv2D,
    TwoLevelGroupConv1D,
    TwoLevelGroupConv2D,
    TwoLevelGroupConv3D,
)
from keras_tlgc.rewrite import fold_batch_norm

EXPORTERS_WARN = [
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


# Models for every lowering: in `_slices` several groups share a kernel if there
# are more than 16 groups, or fewer than 16 channels in each.
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
        TwoLevelGroupConv2D(8, 3, strides=2, padding="same", groups=4),
        TwoLevelGroupConv2D(8, 5, strides=3, padding="same", groups=4),
        TwoLevelGroupConv2D(8, 1, strides=2, groups=4),
    ),
    "any size, wide coarse window": lambda: model_of(
        (None, None, 8),
        TwoLevelGroupConv2D(
            8, 3, strides=2, padding="same", groups=4, coarse_kernel_size=5
        ),
    ),
    "3D": lambda: model_of(
        (5, 4, 6, 8), TwoLevelGroupConv3D(8, 2, groups=4, activation="relu")
    ),
    "one level": lambda: model_of((7, 6, 8), GroupConv2D(8, 3, groups=4)),
    "shuffle": lambda: model_of((7, 6, 8), ShuffleGroupConv2D(8, 3, groups=4)),
    "balanced": lambda: model_of(
        (7, 6, 8), BalancedGroupConv2D(8, 3, groups=4, padding="same")
    ),
    "low rank": lambda: model_of(
        (7, 6, 8),
        LowRankConv2D(
            9, 3, strides=2, padding="same", groups=4, coarse_channels=3
        ),
    ),
    "converted": converted,
    "converted, folded": lambda: fold_batch_norm(converted()),
}


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
    # LiteRT cannot take sizes that the graph computes.
    assert "aten.item" not in {
        str(node.target)[:9] for node in program.graph.nodes
    }
    run = program.module()
    return lambda x: run(torch.from_numpy(x)).detach().numpy()


TARGETS = {
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
