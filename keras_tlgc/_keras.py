"""All private names of Keras that this package uses, each behind a function.

Keras may rename or remove them in any version, since nothing promises them.
`tests/library/test_keras_names.py` tries each and says what breaks without it.
No other module touches a private name of Keras, JAX or PyTorch.
"""

import contextlib
import functools
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import keras

from keras_tlgc.types import Node, Tensor

Function: TypeAlias = Callable[..., Any]

# Layers and models


def parts_of(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Return a layer and all the layers within it, at any depth."""
    return layer._flatten_layers()


def children_of(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Return the layers that a layer holds directly, each once."""
    return layer._flatten_layers(include_self=False, recursive=False)


def added_losses(layer: keras.layers.Layer) -> list[Tensor]:
    """Return the losses that a layer's own last call added."""
    return layer._losses


def attributes_of(layer: keras.layers.Layer) -> dict[str, Any]:
    """Return the attributes of a layer by name, also the layers it holds."""
    # On PyTorch, the layers that it holds are kept apart from the others.
    return {**vars(layer), **vars(layer).get("_modules", {})}


def constructor_arguments(layer: keras.layers.Layer) -> dict[str, Any] | None:
    """Return what a layer was made with, but its name, if Keras has kept it.

    Keras keeps numbers, strings and nests of them, and nothing if there was
    anything else.
    """
    kept = layer._auto_config
    return None if kept is None else dict(kept.config)


def lambda_output_shape(layer: keras.layers.Lambda) -> Any:
    """Return what a `Lambda` layer was given as its `output_shape`."""
    return layer._output_shape


@contextlib.contextmanager
def unlocked(layer: keras.layers.Layer) -> Iterator[None]:
    """Let variables be added to a built layer within the context."""
    layer._tracker.unlock()
    try:
        yield
    finally:
        layer._tracker.lock()


# The calls of a model


def functional_of(model: keras.Model) -> keras.Model:
    """Return the functional model that a Sequential one runs, or `model`."""
    return getattr(model, "_functional", model)


def nodes_by_depth(model: keras.Model) -> dict[int, list[Node]]:
    """Return the calls of a functional model; the outputs have depth 0."""
    return model._nodes_by_depth


def without_calls(operation: keras.Operation) -> keras.Operation:
    """Return a copy of an operation that is not called in any model yet."""
    new = object.__new__(type(operation))
    vars(new).update(vars(operation))
    vars(new).update({"_inbound_nodes": [], "_outbound_nodes": []})
    return new


def has_mask(tensor: keras.KerasTensor) -> bool:
    """Return whether Keras hands a mask on with a symbolic tensor."""
    return getattr(tensor, "_keras_mask", None) is not None


# Variables on JAX


def stored_value(variable: keras.Variable) -> Any:
    """Return the array of a variable, or `None` if a step took it over."""
    return variable._value


def store_value(variable: keras.Variable, value: Any) -> None:
    """Set the array of a variable, with the sharding that the array has."""
    variable._value = value


def stored_layout(variable: keras.Variable) -> Any:
    """Return the layout that a variable was made with, or `None`."""
    return getattr(variable, "_layout", None)


def store_layout(variable: keras.Variable, layout: Any) -> None:
    """Set the layout of a variable that has no value."""
    variable._layout = layout


def layout_map_of(distribution: Any) -> Any:
    """Return the layout map of a `ModelParallel`, or `None` for others."""
    return getattr(distribution, "_layout_map", None)


def variable_asked_for() -> keras.Variable | None:
    """Return the variable that a `ModelParallel` looks up in a layout map.

    Keras gives the map nothing but the variable's path. To be called from the
    map's `__getitem__`; it returns `None` if somebody else looks a path up.
    """
    asks = keras.distribution.ModelParallel.get_variable_layout
    caller = sys._getframe(2)
    if caller.f_code is not asks.__code__:
        return None
    return caller.f_locals["variable"]


def maker_of(variable: keras.Variable) -> Any:
    """Return the layer or optimizer that a new variable belongs to, or `None`.

    To be called while the variable is being made or, within `named_as`, later.
    """
    from keras.src.backend.common import global_state

    scopes = global_state.get_global_attribute("name_scope_stack") or []
    maker = scopes[-1].caller if scopes else None
    owner = variable.path.rpartition("/")[0]
    if not isinstance(maker, keras.layers.Layer) or maker.path == owner:
        return maker
    # A model that is built by its first call gives all its layers' variables
    # their values at the end.
    parts = (part for part in parts_of(maker) if part.path == owner)
    return next(parts, maker if maker.path is None else None)


def named_as(
    layer: keras.layers.Layer,
) -> contextlib.AbstractContextManager[Any]:
    """Return the context in which a layer makes its variables."""
    return layer._open_name_scope()


# Training


def build_metrics(model: keras.Model, batch: tuple[Any, Any, Any]) -> None:
    """Build the metrics of a compiled model from a batch's shapes and types.

    Args:
        model: compiled `keras.Model`.
        batch: tuple of inputs, targets and weights of samples.
    """
    model._symbolic_build(data_batch=batch)


def wrap_batches(wrap: Callable[[Function], Function]) -> Function:
    """Wrap the function that Keras' trainer calls for each batch on a mesh.

    Args:
        wrap: function that takes that function and returns the one to use in
            its place.

    Returns:
        A function without arguments that puts Keras' own one back.

    Raises:
        AttributeError: if this Keras has no such function. So do the others
            that wrap.
    """
    trainer = importlib.import_module(
        f"keras.src.backend.{keras.backend.backend()}.trainer"
    )
    return replace_attribute(trainer, "_distribute_data", wrap)


def wrap_purge(wrap: Callable[[Function], Function]) -> Function:
    """Wrap the method by which a model lets go of its variables for a step.

    See `wrap_batches`.
    """
    return replace_attribute(keras.Model, "_purge_model_variables", wrap)


def wrap_set_distribution(wrap: Callable[[Function], Function]) -> Function:
    """Wrap the function of a name and a value that sets a distribution.

    It sets other things under other names. See `wrap_batches`.
    """
    from keras.src.backend.common import global_state

    return replace_attribute(global_state, "set_global_attribute", wrap)


def replace_attribute(
    owner: Any, name: str, wrap: Callable[[Function], Function]
) -> Function:
    """Wrap a function of a module or class. See `wrap_batches`."""
    original = getattr(owner, name)
    # A class may have inherited it.
    is_own = name in vars(owner)
    new = wrap(original)
    setattr(owner, name, new)

    def undo() -> None:
        if vars(owner).get(name) is not new:
            return  # Others have wrapped it since.
        if is_own:
            setattr(owner, name, original)
        else:
            delattr(owner, name)

    return undo


def sync_state(model: keras.Model) -> None:
    """Give the variables of a model the values of a run that has ended.

    On JAX a run takes the values over. Elsewhere they are always there.
    """
    if keras.backend.backend() != "jax":
        return
    # Keras 3.16 has renamed it, and keeps the old name for a while.
    sync = getattr(model, "state_sync", None) or model.jax_state_sync
    sync()


class SGDWithoutDecay(keras.optimizers.SGD):
    """An SGD that leaves the weight decay to `update_step` of a subclass."""

    def decays(self, variable: keras.Variable) -> bool:
        """Return whether the weight decay applies to a variable."""
        return bool(self.weight_decay) and self._use_weight_decay(variable)

    def slot_of(
        self, slots: Sequence[keras.Variable], variable: keras.Variable
    ) -> keras.Variable:
        """Return the optimizer's slot that belongs to a variable."""
        return slots[self._get_variable_index(variable)]

    def _apply_weight_decay(self, variables: Sequence[keras.Variable]) -> None:
        """Leave out what Keras does once all gradients are applied."""


# Export


def backend_nn() -> Any:
    """Return the module that has the backend's convolutions."""
    package = f"keras.src.backend.{keras.backend.backend()}"
    try:
        return importlib.import_module(f"{package}.ops.nn")
    except ModuleNotFoundError:  # Before Keras 3.16.
        return importlib.import_module(f"{package}.nn")


@contextlib.contextmanager
def native_convolutions() -> Iterator[None]:
    """Let TensorFlow trace grouped convolutions as they are, for export.

    Keras compiles them with XLA, since TensorFlow cannot run them on a CPU.
    tf2onnx takes the plain operation only.
    """
    if keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow as tf

    def conv(
        inputs: Tensor,
        kernel: Tensor,
        strides: Any = 1,
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: Any = 1,
    ) -> Tensor:
        data_format = data_format or keras.config.image_data_format()
        spatial = "DHW"[5 - len(inputs.shape) :]
        last = data_format == "channels_last"
        return tf.nn.convolution(
            inputs,
            kernel,
            strides,
            padding.upper(),
            data_format=f"N{spatial}C" if last else f"NC{spatial}",
            dilations=dilation_rate,
        )

    undo = replace_attribute(backend_nn(), "conv", lambda before: conv)
    try:
        yield
    finally:
        undo()


@contextlib.contextmanager
def padding_in_numbers() -> Iterator[None]:
    """Let PyTorch trace what strided convolutions pad as numbers, for export.

    Otherwise thirty nodes compute it from the sizes of each one's inputs.
    """
    if keras.backend.backend() != "torch":
        yield
        return
    undo = replace_attribute(
        backend_nn(),
        "_compute_padding_length",
        lambda before: lambda *sizes: before(*map(int, sizes)),
    )
    try:
        yield
    finally:
        undo()


# PyTorch


def handle_on_mesh(operation: Any, handle: Function) -> None:
    """Have a function compute an operation of PyTorch on a mesh.

    Args:
        operation: operation of `torch.ops`.
        handle: function of `(otherwise, operation, args, kwargs)`, where
            `otherwise(operation, args, kwargs)` is what computed it before.
    """
    from torch.distributed.tensor import DTensor

    handlers = DTensor._op_dispatcher._custom_op_handlers
    before = handlers[operation]
    if getattr(before, "func", None) is not handle:
        handlers[operation] = functools.partial(handle, before)


@contextlib.contextmanager
def observed(observe: Function) -> Iterator[None]:
    """Observe what PyTorch computes on a mesh, and moves, within the context.

    Args:
        observe: function of `(operation, args, kwargs, result)` that is called
            after each operation on the parts that this device has.
    """
    import torch
    from keras.src.backend.torch import distribution_lib
    from torch.distributed.tensor import DTensor
    from torch.utils._python_dispatch import TorchDispatchMode

    class Observing(TorchDispatchMode):
        def __torch_dispatch__(
            self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if any(issubclass(kind, DTensor) for kind in types):
                # It comes again as the operations on parts it consists of.
                return NotImplemented
            result = operation(*args, **(kwargs or {}))
            if isinstance(operation, torch._ops.OpOverload):
                observe(operation, args, kwargs or {}, result)
            return result

    # Keras has a mode that puts plain tensors on the mesh of a `DTensor` they
    # meet. What lay above it would meet the two kinds mixed.
    distribution_lib.deactivate_dtensor_promotion()
    try:
        with Observing():
            distribution_lib.activate_dtensor_promotion()
            try:
                yield
            finally:
                distribution_lib.deactivate_dtensor_promotion()
    finally:
        distribution_lib.activate_dtensor_promotion()
