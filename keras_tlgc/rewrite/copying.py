"""How folding and conversion copy layers and everything that they hold."""

import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

import keras
from keras import layers

from keras_tlgc._keras import (
    attributes_of,
    constructor_arguments,
    lambda_output_shape,
    parts_of,
    without_calls,
)
from keras_tlgc.graphs import is_graph

# The `id` of a layer, the layer, which keeps its `id`, and its copy.
Copies: TypeAlias = dict[int, tuple[keras.layers.Layer, keras.layers.Layer]]


class CopyError(ValueError):
    """Raised for a layer that cannot be made again from its config."""


@keras.saving.register_keras_serializable(package="keras_tlgc")
class PassedOn:
    """Stands in the config of a layer for an object that is passed on as it is.

    Keras writes an object down as its name or its config, and makes it again
    from that. For an object that is not Keras' own this fails, or finds another
    one of the same name, such as `keras.activations.relu` for a user's `relu`.
    """

    def __init__(self, value: Any) -> None:
        self.value = value

    def __getattr__(self, name: str) -> Any:
        # A `get_config` may ask a function for its name.
        return getattr(self.value, name)

    def get_config(self) -> dict[str, Any]:
        return {"key": id(self.value)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        return config["value"]

    def get_build_config(self) -> None:
        return None  # Those of a model are not to be asked: it is copied.

    get_compile_config = get_build_config


def copy_layer(
    layer: keras.layers.Layer, copies: Copies, **changes: Any
) -> keras.layers.Layer:
    """Return a new layer or operation of the same config, without its weights.

    Objects that are not Keras' own, such as a user's functions and instances of
    a user's classes, are passed on as they are. Layers that serve as another
    layer's activation are copied, and so are functional models within a layer.
    A layer whose config is wrong is made from the arguments that it was made
    with, if these are numbers and strings, with a warning.

    Args:
        layer: layer or operation to copy.
        copies: dict from the `id` of a layer to the layer and its copy. What is
            copied on the way is added to it, each layer once.
        **changes: entries of the config that are to differ.

    Raises:
        CopyError: if the layer cannot be made again.
    """
    if not isinstance(layer, layers.Layer):
        # An operation has no state, apart from the calls in its graph.
        return without_calls(layer)
    if _is_plain_graph(layer):
        return copy_graph(layer, lambda part: copied(part, copies))
    if type(layer) is layers.Lambda:
        # Its config would hold the code of the function.
        return layers.Lambda(
            layer.function,
            output_shape=lambda_output_shape(layer),
            mask=layer.mask,
            arguments=layer.arguments,
            **common_options(layer),
        )
    try:
        config = config_of(layer, copies)
        return type(layer).from_config({**config, **changes})
    except Exception as error:  # Whatever a foreign layer raises.
        new = _made_again(layer, changes)
        if new is None:
            raise _copy_error(layer, "is not", error) from error
        return new


def _made_again(
    layer: keras.layers.Layer, changes: dict[str, Any]
) -> keras.layers.Layer | None:
    """Return a layer made from the same arguments, or None if that fails."""
    arguments = constructor_arguments(layer)
    if arguments is None:
        return None
    own = {"name": layer.name, "dtype": layer.dtype_policy}
    try:
        new = type(layer)(**{**arguments, **own, **changes})
    except Exception:  # Whatever a foreign layer raises.
        return None
    freeze_as(new, layer)
    warnings.warn(
        f"The layer '{layer.name}' is copied by its constructor's arguments, "
        f"since {type(layer).__name__}.get_config() does not make it again. A "
        "saved model that holds it does not load either: mend `get_config`.",
        stacklevel=2,
    )
    return new


def copied(layer: keras.layers.Layer, copies: Copies) -> keras.layers.Layer:
    """Return the copy of a layer or operation, which is made only once."""
    if id(layer) not in copies:
        copies[id(layer)] = layer, copy_layer(layer, copies)
    return copies[id(layer)][1]


def copy_graph(
    model: keras.Model, copy: Callable[[keras.layers.Layer], keras.layers.Layer]
) -> keras.Model:
    """Return a functional or Sequential model of copied layers, not compiled.

    Args:
        model: the model to copy.
        copy: function of a layer or operation that returns the new one.
    """
    # Keras compiles the clone of a compiled model, which fails if the loss
    # cannot be copied.
    compiled, model.compiled = model.compiled, False
    try:
        new = keras.models.clone_model(model, clone_function=copy)
    finally:
        model.compiled = compiled
    if not model.trainable:
        new.trainable = False
    return new


def config_of(layer: keras.layers.Layer, copies: Copies) -> dict[str, Any]:
    """Return a layer's config that holds foreign objects as they are.

    Args:
        layer: layer to describe.
        copies: dict of copied layers: see `copy_layer`.
    """
    stand_ins = _StandIns()
    stand_in = stand_ins.of_layer(layer)
    if not stand_ins.passed:
        return layer.get_config()

    def unpacked(config: Any) -> Any:
        if isinstance(config, PassedOn):
            value = config.value
            is_layer = isinstance(value, layers.Layer)
            return copied(value, copies) if is_layer else value
        if isinstance(config, list | tuple):
            return type(config)(unpacked(one) for one in config)
        if not isinstance(config, dict):
            return config
        if config.get("registered_name") == "keras_tlgc>PassedOn":
            value = stand_ins.passed[config["config"]["key"]]
            return {**config, "config": {"value": unpacked(value)}}
        return {key: unpacked(value) for key, value in config.items()}

    return unpacked(stand_in.get_config())


def common_options(layer: keras.layers.Layer) -> dict[str, Any]:
    """Return the arguments that every layer takes, as objects."""
    return {
        "name": layer.name,
        "dtype": layer.dtype_policy,
        "trainable": layer.trainable,
        "activity_regularizer": layer.activity_regularizer,
    }


def build_with_zeros(layer: keras.layers.Layer, channels: int) -> None:
    """Build a layer of ours, for so many channels, that is to get its weights.

    JAX compiles for a second how the numbers of each shape are drawn.
    """
    own = {k: x for k, x in vars(layer).items() if k.endswith("_initializer")}
    for name in own:
        setattr(layer, name, keras.initializers.Zeros())
    layer.build(free_shape(layer, channels))
    for name, initializer in own.items():
        setattr(layer, name, initializer)


def free_shape(
    layer: keras.layers.Layer, channels: int
) -> tuple[int | None, ...]:
    """Return the shape of inputs of so many channels, for a layer of ours."""
    shape: list[int | None] = [None] * (layer.rank + 2)
    shape[layer.channel_axis] = channels
    return tuple(shape)


def copy_state(target: keras.layers.Layer, source: keras.layers.Layer) -> None:
    """Give a layer the whole state of another one with the same config.

    The state is its weights and those of the layers within, the states of its
    random seeds, and what is frozen.

    Raises:
        CopyError: if the layers do not hold the same parts and variables.
    """
    try:
        _copy_values(target, source)
        # A config says what is frozen for the layer as a whole only.
        parts = parts_of(target), parts_of(source)
        for pair in (parts, (target.weights, source.weights)):
            for new, old in zip(*pair, strict=True):
                freeze_as(new, old)
    except Exception as error:  # Whatever a foreign layer raises.
        raise _copy_error(source, "holds what its copy lacks", error) from error


def _copy_values(
    target: keras.layers.Layer, source: keras.layers.Layer
) -> None:
    # Each part is loaded by itself. Unlike `set_weights`, loading makes a layer
    # such as `Normalization` update what it derives from its weights.
    parts = zip(parts_of(target), parts_of(source), strict=True)
    for new, old in parts:
        if old.built and not new.built:
            # Such as an activation, which Keras builds at its first call on
            # data.
            new.build_from_config(old.get_build_config())
        store: dict[str, object] = {}
        old.save_own_variables(store)
        new.load_own_variables(
            {k: keras.ops.convert_to_numpy(v) for k, v in store.items()}
        )
    for new, old in zip(_seeds(target), _seeds(source), strict=True):
        assign(new, old)


def assign(target: keras.Variable, source: keras.Variable) -> None:
    """Set a variable to a copy of another one's value."""
    # On JAX, variables that share an array lose it when one of them trains.
    target.assign(keras.ops.convert_to_numpy(source))


def freeze_as(
    target: keras.Variable | keras.layers.Layer,
    source: keras.Variable | keras.layers.Layer,
) -> None:
    """Freeze or unfreeze a variable or layer, as another one is."""
    if target.trainable != source.trainable:
        target.trainable = source.trainable


def other_state(layer: keras.layers.Layer) -> list[keras.Variable]:
    """List what a convolution holds besides kernel, bias and activation."""
    known = [layer.kernel, layer.bias]
    if isinstance(layer.activation, layers.Layer):
        known += layer.activation.variables
    ids = {id(variable) for variable in known}
    return [v for v in layer.variables if id(v) not in ids]


def one_line(error: Exception) -> str:
    """Return an error's type and up to 200 characters of its first line."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:200]}"


def _copy_error(
    layer: keras.layers.Layer, what: str, error: Exception
) -> CopyError:
    return CopyError(
        "Each layer must be one that its config makes again. Received: "
        f"'{layer.name}', {type(layer).__name__}, which {what}: "
        f"{one_line(error)} Mend its `get_config`."
    )


def _seeds(layer: keras.layers.Layer) -> list[keras.Variable]:
    weights = {id(variable) for variable in layer.weights}
    return [v for v in layer.variables if id(v) not in weights]


class _StandIns:
    """Makes stand-ins for layers, with foreign objects wrapped in `PassedOn`.

    A stand-in is only asked for its config. So Keras and the layer's own
    `get_config` decide where in the config each object belongs.
    """

    def __init__(self) -> None:
        self.passed: dict[int, PassedOn] = {}
        self.made: dict[int, keras.layers.Layer] = {}

    def of_layer(self, layer: keras.layers.Layer) -> keras.layers.Layer:
        if id(layer) not in self.made:
            new = self.made[id(layer)] = object.__new__(type(layer))
            vars(new).update(
                {
                    name: value
                    # Keras wraps methods, such as `build`: these stay.
                    if callable(getattr(type(layer), name, None))
                    else self.of_attribute(name, value)
                    for name, value in attributes_of(layer).items()
                }
            )
        return self.made[id(layer)]

    def of_attribute(self, name: str, value: Any) -> Any:
        # Other layers may share an activation that is a layer.
        is_activation = name == "activation" and isinstance(value, layers.Layer)
        return self.pass_on(value) if is_activation else self.of(value)

    def of(self, value: Any) -> Any:
        if _is_plain_graph(value) or _is_foreign(value):
            return self.pass_on(value)
        if isinstance(value, layers.Layer):
            return self.of_layer(value)
        if isinstance(value, list):
            return [self.of(one) for one in value]
        if type(value) is tuple:
            return tuple(self.of(one) for one in value)
        if isinstance(value, dict):
            return {key: self.of(one) for key, one in value.items()}
        return value

    def pass_on(self, value: Any) -> PassedOn:
        new = PassedOn(value)
        self.passed[id(value)] = new
        return new


def _is_plain_graph(value: Any) -> bool:
    """Return whether a value is a functional model of one of Keras' classes."""
    if not isinstance(value, keras.Model) or not is_graph(value):
        return False
    return type(value).__module__.split(".")[0] == "keras"


def _is_foreign(value: Any) -> bool:
    """Return whether a value is callable and not Keras' own."""
    kept = type | layers.Layer | keras.metrics.Metric
    if not callable(value) or isinstance(value, kept):
        return False
    name = getattr(value, "__name__", None)
    if name is not None:
        # Keras finds a function by its name among its activations. There
        # `gelu` is another function than `keras.ops.gelu`.
        return getattr(keras.activations, name, None) is not value
    return type(value).__module__.split(".")[0] != "keras"
