"""What the networks have in common: input, initial values, top and weights."""

import math
import os
import warnings
from collections.abc import Iterable
from numbers import Integral, Real

import keras
from keras import layers

from keras_tlgc.sharding.per_shard import check_fits_mesh
from keras_tlgc.validation import divisors, one_of, positive_int


def image_input(input_tensor, input_shape, size: int):
    """Return the tensor that a network begins with.

    `size` is the height and width of the images if neither argument is given.
    """
    if input_tensor is not None:
        if not isinstance(input_tensor, keras.KerasTensor):
            raise ValueError(
                "`input_tensor` must be a Keras tensor, without values. "
                f"Received: {type(input_tensor).__name__}. "
                "Take `keras.Input(shape)` or the output of a layer."
            )
        _check_image("input_tensor.shape[1:]", input_tensor.shape[1:], size)
        return input_tensor
    if input_shape is None:
        last = channel_axis() == -1
        input_shape = (size, size, 3) if last else (3, size, size)
    _check_image("input_shape", input_shape, size)
    return keras.Input(input_shape)


def _check_image(name, shape, size):
    shape = tuple(shape) if isinstance(shape, Iterable) else (shape,)
    if len(shape) != 3:
        raise ValueError(
            f"`{name}` must have 3 entries, those of one image. "
            f"Received: {name}={shape}. "
            f"Leave the batch out, as in ({size}, {size}, 3)."
        )
    channels = shape[-1 if channel_axis() == -1 else 0]
    sizes = [1 if entry is None else entry for entry in shape]
    if channels is None or not all(
        isinstance(entry, Integral) and entry > 0 for entry in sizes
    ):
        raise ValueError(
            f"`{name}` must hold positive integers, or `None` for an unknown "
            f"height or width. Received: {name}={shape}, in the data format "
            f"{keras.config.image_data_format()!r}. Try ({size}, {size}, 3)."
        )


def check_groups(groups: int, channels: Iterable[tuple[str, int]]) -> None:
    """Raise a `ValueError` unless `groups` divides all `channels`.

    `channels` are pairs of a layer's name and its number of input or output
    channels, in the order of the network.
    """
    channels = list(channels)
    common = math.gcd(*(number for _, number in channels))
    if common % groups:
        name, number = next(pair for pair in channels if pair[1] % groups)
        raise ValueError(
            "`groups` must divide the channels of every convolution. "
            f"Received: groups={groups}, but '{name}' has {number} "
            f"channels. Allowed groups: {divisors(common)}."
        )


def check_arguments(
    weights, pooling, classes, dropout, classifier_activation, name
) -> None:
    """Raise a `ValueError` for what would fail after layers have weights."""
    one_of("pooling", pooling, [None, "avg", "max"])
    positive_int("classes", classes)
    keras.activations.get(classifier_activation)
    if name is not None and (not isinstance(name, str) or "/" in name):
        raise ValueError(
            "`name` must be a string without the character '/'. "
            f"Received: name={name!r}. Leave it out for a default."
        )
    if not isinstance(dropout, Real) or not 0 <= float(dropout) < 1:
        raise ValueError(
            "`dropout` must be a number from 0 to below 1. "
            f"Received: dropout={dropout!r}. Leave it out for no dropout."
        )
    if weights is not None and not (
        isinstance(weights, str | os.PathLike) and os.path.isfile(weights)
    ):
        raise ValueError(
            "`weights` must be None or the path of a weights file. "
            f"Received: weights={str(weights)!r}, which is no file. "
            "Check the path: no pretrained weights are shipped."
        )


def convolution_args() -> dict:
    """Return a convolution's arguments: no bias, initialised as by He et al."""
    he_normal = keras.initializers.VarianceScaling(
        2.0, mode="fan_in", distribution="untruncated_normal"
    )
    return {
        "padding": "same",
        "use_bias": False,
        "kernel_initializer": he_normal,
    }


def strided(make_conv, x, filters, kernel_size, strides, name, **args):
    """Convolve `x`, padded equally on all sides, as `"same"` may not do."""
    check_fits_mesh(f"{name}/kernel", "filters", filters)
    if strides > 1 and kernel_size > 1:
        x = layers.ZeroPadding2D(kernel_size // 2, name=f"{name}_pad")(x)
        args["padding"] = "valid"
    return make_conv(filters, kernel_size, strides=strides, name=name, **args)(
        x
    )


def batch_norm(x, name: str):
    """Normalise with the momentum and epsilon of the paper's networks."""
    return layers.BatchNormalization(
        axis=channel_axis(), momentum=0.9, epsilon=1e-5, name=name
    )(x)


def batch_norm_relu(x, name: str):
    """Normalise, then cut off what is negative."""
    return layers.ReLU(name=f"{name}_relu")(batch_norm(x, name))


def top(x, include_top, pooling, classes, classifier_activation, dropout=0.0):
    """End a network with a classifier, with pooled features or with `x`."""
    if include_top or pooling == "avg":
        x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    elif pooling == "max":
        x = layers.GlobalMaxPooling2D(name="max_pool")(x)
    if not include_top:
        return x
    if dropout:
        x = layers.Dropout(dropout, name="dropout")(x)
    # The authors' framework has this default: uniform within 1 / sqrt(fan_in).
    uniform = keras.initializers.VarianceScaling(
        1 / 3, mode="fan_in", distribution="uniform"
    )
    return layers.Dense(
        classes,
        activation=classifier_activation,
        kernel_initializer=uniform,
        name="predictions",
    )(x)


def network(inputs, input_tensor, outputs, weights, name: str) -> keras.Model:
    """Return the model, with the weights of a file if one is given."""
    if input_tensor is not None:
        sources = keras.utils.get_source_inputs(input_tensor)
        # A model made with a list would, once exported, take a list too.
        inputs = sources[0] if len(sources) == 1 else sources
    model = keras.Model(inputs, outputs, name=name)
    if weights is None:
        return model
    try:
        with warnings.catch_warnings():
            # TensorFlow warns of this before the error that says what does not
            # fit.
            warnings.filterwarnings("ignore", "Skipping nested container")
            model.load_weights(weights)
    except (ValueError, OSError, KeyError) as error:
        raise ValueError(
            "`weights` must be a file of weights of the same network. "
            f"Received: weights={os.fspath(weights)!r}, which does not fit "
            f"'{name}' ({' '.join(str(error).split())[:200]}...). "
            "Build the network with the arguments it was saved with."
        ) from error
    return model


def channel_axis() -> int:
    """Return the axis of the channels in Keras' image data format."""
    return -1 if keras.config.image_data_format() == "channels_last" else 1
