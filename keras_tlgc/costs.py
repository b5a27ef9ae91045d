"""What a model costs, read from its shapes."""

import math
from collections.abc import Callable
from typing import NamedTuple

import keras

from keras_tlgc._keras import parts_of
from keras_tlgc.graphs import calls_by_id, is_graph
from keras_tlgc.layers.answers import Answers, about, positions
from keras_tlgc.precision import bytes_of
from keras_tlgc.types import Node, Tensor
from keras_tlgc.valueless import without_values
from keras_tlgc.variables import role_of, size


class Costs(NamedTuple):
    """What a model costs for one input.

    Attributes:
        params: trainable parameters as the paper counts them: those of a
            `LearnableGroupConv2D` are the weights that groups of equal size
            would keep.
        stored_params: all trainable parameters.
        params_per_processor: those of `params` that each of N processors holds:
            1/N of each layer of N groups, Keras' own included, and all of every
            other layer (section 3.2 of the paper). Where groups differ in size,
            this is the mean.
        coarse_params: those of `params` in coarse levels, R and C.
        multiply_adds: multiplications with the kept weights of convolutions (C
            included) and dense layers, in all calls of each layer. What LoRA
            adds while it trains is left out.
        activation_bytes: bytes of the outputs of all calls of layers, and of
            coarse channels.
    """

    params: int
    stored_params: int
    params_per_processor: int
    coarse_params: int
    multiply_adds: int
    activation_bytes: float


def model_costs(build: Callable[[], keras.Model]) -> Costs:
    """Return what a model costs, without allocating its weights.

    Args:
        build: function without arguments that returns a functional or
            Sequential model, built. It is called once, in a thread, and its
            variables get no values.

    Returns:
        The model's `Costs`.

    Raises:
        ValueError: if the model is not functional or Sequential or is not
            built, has a kernel in a layer that is neither a convolution nor
            `Dense`, or has an output of unknown size.

    Example:

    >>> from keras_tlgc.applications import WideResNet
    >>> costs = keras_tlgc.costs.model_costs(
    ...     lambda: WideResNet(28, 10, conv="two_level", groups=4)
    ... )
    >>> costs.params, costs.coarse_params
    (9254234, 115840)
    """

    def total() -> Costs:
        model = build()
        if not is_graph(model):
            raise ValueError(
                "Costs are counted for models that are functional or "
                f"Sequential, and built. Received: {type(model).__name__}. "
                "Use `count_params` for the parameters alone."
            )
        calls = calls_by_id(model)
        costs = [
            _layer_costs(part, calls.get(id(part), [])) for part in model.layers
        ]
        return Costs(*map(sum, zip(*costs, strict=True)))

    return without_values(total)


def count_params(build: Callable[[], keras.layers.Layer]) -> int:
    """Count the parameters of a model, as the paper does, allocating none.

    Args:
        build: function without arguments that returns a built model or layer.
            It is called once, in a thread, and its variables get no values.

    Returns:
        The number of trainable parameters, an integer. Of each
        `LearnableGroupConv2D` it counts those that groups of equal size would
        keep.

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
    parts = parts_of(layer)
    return stored_params(layer) - sum(
        about(part).dropped_params() for part in parts
    )


def stored_params(layer: keras.layers.Layer) -> int:
    """Return the trainable parameters of a built model or layer."""
    return sum(map(size, layer.trainable_variables))


def _layer_costs(layer: keras.layers.Layer, nodes: list[Node]) -> Costs:
    """Return the costs of a layer in all nodes of a graph that call it."""
    answers, params = about(layer), kept_params(layer)
    multiply_adds = 0
    activation_bytes: float = 0  # Half a byte for dtypes of four bits.
    for node in nodes:
        outputs = node.output_tensors
        entries = [_entries(layer, tensor) for tensor in outputs]
        if not isinstance(layer, keras.layers.InputLayer):
            activation_bytes += sum(
                count * bytes_of(tensor.dtype)
                for count, tensor in zip(entries, outputs, strict=True)
            )
        if adds := _multiply_adds(layer, answers):
            shapes = _one(node.input_tensors[0]), _one(outputs[0])
            at = positions(layer, *shapes)
            multiply_adds += at * adds
            gathered = at * answers.gathered_channels
            activation_bytes += gathered * bytes_of(outputs[0].dtype)
    return Costs(
        params=params,
        stored_params=stored_params(layer),
        params_per_processor=params // answers.groups,
        coarse_params=sum(
            size(v) for v in layer.trainable_variables if role_of(v).is_coarse
        ),
        multiply_adds=multiply_adds,
        activation_bytes=activation_bytes,
    )


def _multiply_adds(layer: keras.layers.Layer, answers: Answers) -> int:
    adds = answers.multiply_adds()
    if adds is None:
        raise ValueError(
            "Multiply-adds are counted for convolutions and Dense only, not "
            "within nested models. "
            f"Received: the layer '{layer.name}', {type(layer).__name__}. "
            "Use `count_params` for the parameters alone."
        )
    return adds


def _one(tensor: Tensor) -> tuple[int | None, ...]:
    """Return the shape of one sample."""
    return (1, *tensor.shape[1:])


def _entries(layer: keras.layers.Layer, output: Tensor) -> int:
    """Return the entries of an output for one input."""
    shape = output.shape[1:]
    if None in shape:
        raise ValueError(
            "Costs depend on the sizes of all outputs. Received: the layer "
            f"'{layer.name}' with the output shape {output.shape}. "
            "Build the model with a fixed `input_shape`."
        )
    return math.prod(shape)
