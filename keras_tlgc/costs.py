"""What a model costs, read from its shapes."""

import concurrent.futures
import contextlib
import math
from collections.abc import Callable
from typing import NamedTuple

import keras

from keras_tlgc.layers import LearnableGroupConv2D
from keras_tlgc.layers.base_group_conv import BaseGroupConv
from keras_tlgc.layers.two_level_group_conv import BaseTwoLevelGroupConv

COARSE_KERNELS = ("restriction_kernel", "coarse_kernel")
COUNTED_LAYERS = (
    BaseGroupConv,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.Dense,
)
BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


class Costs(NamedTuple):
    """What a model costs for one input.

    Attributes:
        params: trainable parameters as the paper counts them: of a
            `LearnableGroupConv2D` the weights kept by groups of equal size.
        stored_params: all trainable parameters.
        params_per_processor: those of `params` that each of N processors
            holds: 1/N of each layer of N groups (section 3.2 of the paper; the
            mean, where groups differ in size), all of the other layers.
        coarse_params: those of `params` in coarse levels, R and C.
        multiply_adds: multiplications of the convolutions (C included) and
            dense layers, of the kept weights.
        activation_bytes: bytes of the outputs of all layers, and of the
            coarse channels of two-level ones.
    """

    params: int
    stored_params: int
    params_per_processor: int
    coarse_params: int
    multiply_adds: int
    activation_bytes: int


def model_costs(build: Callable[[], keras.Model]) -> Costs:
    """Return what a model costs, without allocating its weights.

    Args:
        build: function without arguments that returns a functional or
            Sequential model, built. Its variables get no values; it is called
            once, in a thread.

    Returns:
        The model's `Costs`.

    Raises:
        ValueError: if the model has a kernel in a layer that is no
            convolution and not `Dense`, calls a layer more than once, or a
            size of an output is unknown.

    Example:

    >>> from keras_tlgc.applications import WideResNet
    >>> costs = keras_tlgc.costs.model_costs(
    ...     lambda: WideResNet(28, 10, conv="two_level", groups=4)
    ... )
    >>> costs.params, costs.coarse_params
    (9254234, 115840)
    """

    def total():
        costs = [_layer_costs(layer) for layer in build().layers]
        return Costs(*map(sum, zip(*costs, strict=True)))

    return without_values(total)


def count_params(build: Callable[[], keras.layers.Layer]) -> int:
    """Count the parameters of a model, as the paper does, allocating none.

    Args:
        build: function without arguments that returns a built model or layer.
            Its variables get no values; it is called once, in a thread.

    Returns:
        The number of trainable parameters, an integer; of each
        `LearnableGroupConv2D` those kept by groups of equal size.

    Raises:
        Exception: whatever `build` raises.

    Example:

    >>> from keras_tlgc.applications import WideResNet
    >>> keras_tlgc.costs.count_params(lambda: WideResNet(28, 10))
    36479194
    """
    return without_values(lambda: kept_params(build()))


def kept_params(layer: keras.layers.Layer) -> int:
    """Return the parameters of a built model or layer as the paper counts."""
    dropped = sum(
        _stored_params(part) - _kept_params(part)
        for part in layer._flatten_layers()
        if isinstance(part, LearnableGroupConv2D) and part.trainable
    )
    return _stored_params(layer) - dropped


def without_values(compute: Callable, scope=contextlib.nullcontext):
    """Return what `compute()` returns where variables are given no values.

    It is called in a thread of its own, within the context `scope()`.
    """
    policy = keras.config.dtype_policy()  # One for each thread.

    def in_thread():
        keras.config.set_dtype_policy(policy)
        # The scope defers initialisation to the end of the next scope. Keras
        # keeps what it deferred per thread, so here it ends with the thread.
        with scope(), keras.StatelessScope(initialize_variables=False):
            return compute()

    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(in_thread).result()


def _layer_costs(layer):
    params = kept_params(layer)
    is_grouped = isinstance(layer, BaseGroupConv)
    coarse = sum(
        _size(v)
        for v in layer.trainable_variables
        if v.name.startswith(COARSE_KERNELS)
    )
    positions, outputs = _output_sizes(layer)
    if isinstance(layer, keras.layers.InputLayer):
        outputs = 0
    elif isinstance(layer, BaseTwoLevelGroupConv):
        outputs += positions * layer.groups * layer.coarse_channels
    return Costs(
        params=params,
        stored_params=_stored_params(layer),
        params_per_processor=params // layer.groups if is_grouped else params,
        coarse_params=coarse,
        multiply_adds=positions * _kernel_size(layer),
        activation_bytes=outputs * BYTES.get(layer.compute_dtype, 4),
    )


def _kernel_size(layer):
    """Return the number of weights each output position is computed from."""
    if isinstance(layer, LearnableGroupConv2D):
        return _size(layer.kernel) // layer.groups
    kernels = sum(_size(v) for v in layer.weights if "kernel" in v.name)
    if kernels and not isinstance(layer, COUNTED_LAYERS):
        raise ValueError(
            "Multiply-adds are counted for convolutions and Dense only, not "
            "within nested models. "
            f"Received: the layer '{layer.name}', {type(layer).__name__}. "
            "Use `count_params` for the parameters alone."
        )
    return kernels


def _output_sizes(layer):
    """Return the positions and the entries of the output for one input."""
    if len(layer._inbound_nodes) != 1:
        raise ValueError(
            "Costs are counted for layers that are called once. Received: the "
            f"layer '{layer.name}', called {len(layer._inbound_nodes)} times. "
            "Use `count_params` for the parameters alone."
        )
    shape = layer.output.shape[1:]
    if None in shape:
        raise ValueError(
            "Costs depend on the sizes of all outputs. Received: the layer "
            f"'{layer.name}' with the output shape {layer.output.shape}. "
            "Build the model with a fixed `input_shape`."
        )
    first = getattr(layer, "data_format", None) == "channels_first"
    entries = math.prod(shape)
    return entries // shape[0 if first else -1], entries


def _kept_params(layer: LearnableGroupConv2D):
    bias = _size(layer.bias) if layer.use_bias else 0
    return _size(layer.kernel) // layer.groups + bias


def _stored_params(layer):
    return sum(map(_size, layer.trainable_variables))


def _size(variable):
    return math.prod(variable.shape)
