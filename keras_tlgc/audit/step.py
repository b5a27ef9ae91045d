"""Compiling a model's train step for a mesh, without data or weights."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras

from keras_tlgc._keras import (
    build_metrics,
    named_as,
    parts_of,
    store_layout,
    stored_value,
)
from keras_tlgc.audit.batch import made_up_data
from keras_tlgc.audit.hlo import Collective, collectives
from keras_tlgc.audit.rules import asked_outputs, checked_layout
from keras_tlgc.valueless import without_values


class Call(NamedTuple):
    """A call of a layer in the train step: the layer and two shapes."""

    layer: keras.layers.Layer
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]


class Tensor(NamedTuple):
    """A variable of model or optimizer: its path, size, and size per device.

    `axes` are the axes of the mesh that its own axes are split over, with
    `None` for an axis that is not split.
    """

    path: str
    shape: tuple[int, ...]
    local_shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    bytes: int
    local_bytes: int


class Step(NamedTuple):
    """A train step: compiled on JAX, run once on PyTorch.

    Attributes:
        distribution: the `keras.distribution` it is made for.
        collectives: list of `Collective`, what every device moves.
        calls: list of `Call`, all calls of layers, in their order.
        trainable, fixed, slots, metrics: lists of `Tensor`, the variables.
        flops: float, floating-point operations of one device, as the compiler
            counts them; on PyTorch those of convolutions and products.
        bytes_accessed: float, bytes that the program of one device reads and
            writes, as the compiler counts them.
        temporary_bytes: int, the most bytes that activations, gradients and
            everything else except arguments and results take on one device.
            These two are NaN on PyTorch, which does not count them.
        sum_kinds: tuple of strings, the collectives that a sum along the batch
            axis may consist of.
        findings: list of strings, what is wrong with the step itself.
        outputs: list of strings, the paths by which Keras looked up how to lay
            out outputs of layers.
    """

    distribution: Any
    collectives: list[Collective]
    calls: list[Call]
    trainable: list[Tensor]
    fixed: list[Tensor]
    slots: list[Tensor]
    metrics: list[Tensor]
    flops: float
    bytes_accessed: float
    temporary_bytes: float
    sum_kinds: tuple[str, ...] = ("all-reduce",)
    findings: Sequence[str] = ()
    outputs: Sequence[str] = ()


def compile_network(
    build: Callable[[], keras.Model],
    distribution,
    batch_size: int,
) -> Step:
    """Compile the train step of a classifier without allocating its weights.

    The step is one of SGD with momentum 0.9 on sparse categorical crossentropy,
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
        with named_as(model):
            for variable in model.variables if distribution else ():
                # The initialisation, which is left out, would have done this.
                store_layout(variable, checked_layout(distribution, variable))
        return _compile(model, distribution, batch_size, None)

    with _scope(distribution):
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
        return without_values(compile_unbuilt, lambda: _scope(distribution))


def compile_step(model, distribution, batch_size: int, data=None) -> Step:
    """Compile the train step that `model.fit` would run.

    It leaves nothing behind that a later `fit` would find, and uses nothing
    that an earlier `fit` left.

    Args:
        model: compiled `keras.Model`.
        distribution: the `keras.distribution` it was built under, or `None`.
        batch_size: int, samples in a global batch.
        data: optional batch `(x, y)` or `(x, y, sample_weight)` of arrays.
            Without it, shapes are taken from the model's inputs and outputs.

    Returns:
        A `Step`.
    """
    with spare_optimizer(model):
        return _compile(model, distribution, batch_size, data)


def _compile(model, distribution, batch_size, data):
    import jax

    if data is None:
        data = made_up_data(model, batch_size)
    batch = jax.tree.map(
        lambda array: _struct(
            array.shape,
            array.dtype,
            distribution and distribution.get_data_layout(array.shape),
        ),
        tuple(data),
    )
    with asked_outputs(distribution) as outputs:
        variables = variables_of_step(model, batch)
        state = tuple(
            [_struct(v.shape, v.dtype, _layout(v, distribution)) for v in group]
            for group in variables
        )
        shardings = jax.tree.map(lambda struct: struct.sharding, state)

        def train_step(state, batch):
            return model.train_step(state, batch)

        step = jax.jit(
            # JAX has not seen this function before. For the method itself it
            # would return what `fit` traced, without calling any layer.
            train_step,
            donate_argnums=0,
            out_shardings=(None, shardings) if distribution else None,
        )
        with recorded_calls(model) as calls:
            lowered = step.lower(state, batch)
    compiled = lowered.compile()
    costs = compiled.cost_analysis()
    devices = distribution.device_mesh.devices.size if distribution else 1
    trainable, fixed, slots, metrics = (
        [_tensor(*pair) for pair in zip(*both, strict=True)]
        for both in zip(variables, state, strict=True)
    )
    return Step(
        distribution,
        collectives(compiled.as_text(), devices),
        calls,
        trainable,
        fixed,
        slots,
        metrics,
        flops=costs.get("flops", math.nan),
        bytes_accessed=costs.get("bytes accessed", math.nan),
        temporary_bytes=compiled.memory_analysis().temp_size_in_bytes,
        outputs=outputs,
    )


def variables_of_step(model, batch):
    """Do what `fit` does before its first step: make metrics and slots.

    Returns:
        The lists of trainable and other variables of the model, of the slots of
        its optimizer and of the variables of its metrics.
    """
    build_metrics(model, keras.utils.unpack_x_y_sample_weight(batch))
    model.optimizer.build(model.trainable_variables)
    return (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )


def _scope(distribution):
    return distribution.scope() if distribution else contextlib.nullcontext()


def _layout(variable, distribution):
    if stored_value(variable) is not None:
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
        tuple(getattr(struct.sharding, "spec", ())),
        math.prod(shape) * size,
        math.prod(local) * size,
    )


@contextlib.contextmanager
def spare_optimizer(model):
    """Keep an optimizer that has no slots yet without slots.

    The user may still freeze parts of the model, and an optimizer keeps to the
    variables that it was first built for. Within the block the model has
    another optimizer of the same config.
    """
    optimizer = spare = model.optimizer
    if not optimizer.built:
        # An optimizer that its config does not describe is built after all.
        with contextlib.suppress(Exception):
            spare = type(optimizer).from_config(optimizer.get_config())
    try:
        # Here and below, this bypasses Keras' tracking of attributes.
        object.__setattr__(model, "optimizer", spare)
        yield
    finally:
        object.__setattr__(model, "optimizer", optimizer)


@contextlib.contextmanager
def recorded_calls(
    model: keras.Model, run: Callable[..., Any] | None = None
) -> Iterator[list[Call]]:
    """Record all calls of layers while the block runs.

    Args:
        model: the `keras.Model` with the layers.
        run: optional function of `(layer, call, args, kwargs)` that returns
            `call(*args, **kwargs)`.
    """
    calls = []
    layers = [
        layer
        for layer in parts_of(model)[1:]
        if not isinstance(layer, keras.layers.InputLayer)
    ]
    # An instance may have a `call` of its own.
    own = [vars(layer).get("call") for layer in layers]

    def recording(layer, call):
        def record(*args, **kwargs):
            outputs = (
                run(layer, call, args, kwargs) if run else call(*args, **kwargs)
            )
            first = next(iter([*args, *kwargs.values()]), None)
            shapes = (getattr(t, "shape", ()) for t in (first, outputs))
            calls.append(Call(layer, *shapes))
            return outputs

        return record

    try:
        for layer in layers:
            object.__setattr__(layer, "call", recording(layer, layer.call))
        yield calls
    finally:
        for layer, call in zip(layers, own, strict=True):
            if call is None:
                object.__delattr__(layer, "call")
            else:
                object.__setattr__(layer, "call", call)
