"""Steps of layers and models as each backend compiles them, to be timed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_tlgc.types import Tensor


class Step(NamedTuple):
    """Something to time: `run()` computes and waits for the result.

    `planned_bytes()` is the memory that the compiler plans beyond inputs and
    weights. It is `None` where no compiler says so.
    """

    run: Callable[[], object]
    planned_bytes: Callable[[], float] | None = None


class Task(NamedTuple):
    """What a step computes.

    Attributes:
        call: function of `x` that returns a tensor.
        variables: the trainable variables that it reads.
        x: tensor, or a structure of them.
        gradient: the gradient of a loss by what `call` returns. `None` for the
            forward pass alone.
        of_inputs: whether the gradient by `x` is computed too, beside that by
            the variables.
    """

    call: Callable[[Any], Tensor]
    variables: list[keras.Variable]
    x: Any
    gradient: Tensor | None
    of_inputs: bool


def layer_step(
    layer: keras.layers.Layer,
    x: np.ndarray,
    training: bool,
    jit_compile: bool | str,
) -> Step:
    """Return a step of a built layer, run once.

    With `training` it computes all gradients beside the output. `jit_compile`
    is that of `keras.Model.compile`.
    """
    x = ops.convert_to_tensor(x, dtype=layer.compute_dtype)
    gradient = None
    if training:
        shape = layer.compute_output_shape(x.shape)
        gradient = np.random.default_rng(1).normal(size=shape)
        gradient = ops.convert_to_tensor(gradient, dtype=layer.compute_dtype)
    variables = layer.trainable_variables
    return _compiled(Task(layer, variables, x, gradient, True), jit_compile)


def model_step(
    model: keras.Model, x: Any, training: bool, jit_compile: bool | str
) -> Step:
    """Return a step of a model, run once.

    With `training` it computes, in training mode, the gradients of the mean
    squares of the outputs by all trainable variables. It changes variables that
    are not trainable, such as the means of a normalisation.
    """

    def loss(x: Any) -> Tensor:
        outputs = keras.tree.flatten(model(x, training=training))
        squares = [ops.square(ops.cast(y, "float32")) for y in outputs]
        return sum(map(ops.mean, squares), start=ops.zeros(()))

    variables = model.trainable_variables
    one = ops.ones(()) if training and variables else None
    x = keras.tree.map_structure(ops.convert_to_tensor, x)
    return _compiled(Task(loss, variables, x, one, False), jit_compile)


def random_inputs(shapes: Any, batch_size: int) -> Any:
    """Return a batch for symbolic inputs: random, or zeros for integers."""
    random = np.random.default_rng(0)

    def batch(one: keras.KerasTensor) -> np.ndarray:
        shape = (batch_size, *one.shape[1:])
        if "int" in one.dtype or one.dtype == "bool":
            return np.zeros(shape, one.dtype)
        return random.normal(size=shape).astype("float32")

    return keras.tree.map_structure(batch, shapes)


def _compiled(task: Task, jit_compile: bool | str) -> Step:
    makers = {"jax": _jax, "tensorflow": _tensorflow, "torch": _torch}
    step = makers[keras.backend.backend()](task, jit_compile)
    step.run()
    return step


def _jax(task: Task, jit_compile: bool | str) -> Step:
    import jax

    del jit_compile  # A step that is not compiled is of no use to anyone.

    def forward(weights: Any, x: Any) -> Any:
        # Unlike `stateless_call`, this casts as the layer's policy says.
        mapping = list(zip(task.variables, weights, strict=True))
        with keras.StatelessScope(mapping):
            return task.call(x)

    def training(weights: Any, x: Any, gradient: Any) -> Any:
        if task.of_inputs:
            y, backward = jax.vjp(forward, weights, x)
        else:
            y, backward = jax.vjp(lambda weights: forward(weights, x), weights)
        return y, backward(gradient)

    arguments = [[v.value for v in task.variables], task.x]
    step: Callable[..., Any] = forward
    if task.gradient is not None:
        step, arguments = training, [*arguments, task.gradient]
    compiled = jax.jit(step).lower(*arguments).compile()

    def planned_bytes() -> float:
        memory = compiled.memory_analysis()
        return memory.temp_size_in_bytes + memory.output_size_in_bytes

    def run() -> object:
        return jax.block_until_ready(compiled(*arguments))

    return Step(run, planned_bytes)


def _tensorflow(task: Task, jit_compile: bool | str) -> Step:
    import tensorflow as tf

    @tf.function(jit_compile=jit_compile in (True, "auto"))  # As in `fit`.
    def step(x: Any) -> Any:
        if task.gradient is None:
            return task.call(x)
        weights = [v.value for v in task.variables]
        read = [x, *weights] if task.of_inputs else weights
        with tf.GradientTape() as tape:
            tape.watch(read)
            y = task.call(x)
        return y, tape.gradient(y, read, task.gradient)

    step = step.get_concrete_function(task.x)

    def run() -> object:
        outputs = step(task.x)
        tf.test.experimental.sync_devices()
        return outputs

    return Step(run)


def _torch(task: Task, jit_compile: bool | str) -> Step:
    import torch

    call = torch.compile(task.call) if jit_compile is True else task.call
    read = [v.value for v in task.variables]
    x = task.x
    if task.of_inputs:
        x = x.clone().requires_grad_(task.gradient is not None)
        read = [x, *read]

    def run() -> object:
        with torch.set_grad_enabled(task.gradient is not None):
            outputs = y = call(x)
        if task.gradient is not None:
            gradients = torch.autograd.grad(
                y, read, task.gradient, allow_unused=True
            )
            outputs = y, gradients
        if y.is_cuda:
            torch.cuda.synchronize()
        return outputs

    return Step(run)
