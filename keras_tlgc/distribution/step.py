"""Compiling a model's train step for a mesh, without data or weights."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras

from keras_tlgc.costs import without_values


class Call(NamedTuple):
    """A call of a layer in the train step: the layer and two shapes."""

    layer: keras.layers.Layer
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]


class Tensor(NamedTuple):
    """A variable of model or optimizer: its path, size, and size per device."""

    path: str
    shape: tuple[int, ...]
    local_shape: tuple[int, ...]
    bytes: int
    local_bytes: int


class Step(NamedTuple):
    """A compiled train step.

    Attributes:
        distribution: the `keras.distribution` it is compiled for.
        text: string, the program that every device runs, in HLO.
        calls: list of `Call`, all calls of layers, in their order.
        trainable, fixed, slots, metrics: lists of `Tensor`, the variables.
        flops: float, floating-point operations of one device, as the compiler
            counts them.
        bytes_accessed: float, bytes that the program of one device reads and
            writes, as the compiler counts them.
        temporary_bytes: int, the most bytes that activations, gradients and
            all else that is no argument or result take on one device.
    """

    distribution: Any
    text: str
    calls: list[Call]
    trainable: list[Tensor]
    fixed: list[Tensor]
    slots: list[Tensor]
    metrics: list[Tensor]
    flops: float
    bytes_accessed: float
    temporary_bytes: int


def compile_network(
    build: Callable[[], keras.Model],
    distribution,
    batch_size: int,
) -> Step:
    """Compile the train step of a classifier without allocating its weights.

    It is trained with SGD of momentum 0.9 on sparse categorical crossentropy,
    as in the paper.

    Args:
        build: function without arguments that returns the network.
        distribution: the `keras.distribution` to compile for, or `None`.
        batch_size: int, samples in a global batch.

    Returns:
        A `Step`.
    """

    def compile_unbuilt():
        model = build()
        model.compile(optimizer, "sparse_categorical_crossentropy")
        for variable in model.variables if distribution else ():
            # What its initialisation would have done.
            variable._layout = distribution.get_variable_layout(variable)
        return compile_step(model, distribution, batch_size)

    with _scope(distribution):
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
        return without_values(compile_unbuilt, lambda: _scope(distribution))


def compile_step(model, distribution, batch_size: int, data=None) -> Step:
    """Compile the train step that `model.fit` would run.

    Args:
        model: compiled `keras.Model`.
        distribution: the `keras.distribution` it was built under, or `None`.
        batch_size: int, samples in a global batch.
        data: optional batch `(x, y)` or `(x, y, sample_weight)` of arrays;
            else shapes are taken from the model's inputs and outputs.

    Returns:
        A `Step`.
    """
    import jax

    if data is None:
        data = _made_up_data(model, batch_size)
    batch = jax.tree.map(
        lambda array: _struct(
            array.shape,
            array.dtype,
            distribution and distribution.get_data_layout(array.shape),
        ),
        tuple(data),
    )
    # What `fit` does before its first step: build metrics and slots.
    x, y, weight = keras.utils.unpack_x_y_sample_weight(batch)
    model._symbolic_build(data_batch=(x, y, weight))
    model.optimizer.build(model.trainable_variables)
    variables = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )
    state = tuple(
        [_struct(v.shape, v.dtype, _layout(v, distribution)) for v in group]
        for group in variables
    )
    shardings = jax.tree.map(lambda struct: struct.sharding, state)
    step = jax.jit(
        model.train_step,
        donate_argnums=0,
        out_shardings=(None, shardings) if distribution else None,
    )
    with _recorded(model) as calls:
        lowered = step.lower(state, batch)
    compiled = lowered.compile()
    costs = compiled.cost_analysis()
    trainable, fixed, slots, metrics = (
        [_tensor(*pair) for pair in zip(*both, strict=True)]
        for both in zip(variables, state, strict=True)
    )
    return Step(
        distribution,
        compiled.as_text(),
        calls,
        trainable,
        fixed,
        slots,
        metrics,
        flops=costs.get("flops", math.nan),
        bytes_accessed=costs.get("bytes accessed", math.nan),
        temporary_bytes=compiled.memory_analysis().temp_size_in_bytes,
    )


def _scope(distribution):
    return distribution.scope() if distribution else contextlib.nullcontext()


def _layout(variable, distribution):
    if variable._value is not None:
        return variable.value.sharding
    return distribution and distribution.get_variable_layout(variable)


def _struct(shape, dtype, layout):
    import jax

    return jax.ShapeDtypeStruct(
        tuple(shape), dtype, sharding=getattr(layout, "backend_layout", layout)
    )


def _tensor(variable, struct):
    shape = struct.shape
    local = struct.sharding.shard_shape(shape) if struct.sharding else shape
    size = struct.dtype.itemsize
    return Tensor(
        variable.path,
        shape,
        tuple(local),
        math.prod(shape) * size,
        math.prod(local) * size,
    )


def _made_up_data(model, batch_size):
    """Return shapes and types of a batch, from the model's own."""
    import jax

    def of(tensor, dtype=None, without_last=False):
        shape = tuple(tensor.shape)[1 : -1 if without_last else None]
        if None in shape:
            raise ValueError(
                "The sizes of a batch must be known. Received: a model with "
                f"the shape {tuple(tensor.shape)}. Pass a batch as `data`, or "
                "build the model with a fixed input shape."
            )
        return jax.ShapeDtypeStruct((batch_size, *shape), dtype or tensor.dtype)

    inputs = getattr(model, "inputs", None)
    outputs = getattr(model, "outputs", None)
    if not inputs or not outputs:
        raise ValueError(
            "The shapes of a batch are taken from the model's inputs and "
            f"outputs. Received: a {type(model).__name__} without them. "
            "Pass a batch as `data=(x, y)`."
        )
    loss = getattr(model.loss, "name", model.loss)
    sparse = "sparse" in getattr(loss, "__name__", str(loss))
    x = [of(tensor) for tensor in inputs]
    y = [of(tensor, "int32" if sparse else None, sparse) for tensor in outputs]
    return tuple(part[0] if len(part) == 1 else part for part in (x, y))


@contextlib.contextmanager
def _recorded(model) -> Iterator[list[Call]]:
    """Record all calls of layers while the block runs."""
    calls = []
    layers = [
        layer
        for layer in model._flatten_layers(include_self=False)
        if not isinstance(layer, keras.layers.InputLayer)
    ]

    def recording(layer, call):
        def record(*args, **kwargs):
            outputs = call(*args, **kwargs)
            first = next(iter([*args, *kwargs.values()]), None)
            shapes = (getattr(t, "shape", ()) for t in (first, outputs))
            calls.append(Call(layer, *shapes))
            return outputs

        return record

    try:
        for layer in layers:
            # Beside Keras' attribute tracking.
            object.__setattr__(layer, "call", recording(layer, layer.call))
        yield calls
    finally:
        for layer in layers:
            object.__delattr__(layer, "call")
