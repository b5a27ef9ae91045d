"""Grouped convolution as a sum over the taps of its window.

At each tap, a shifted view of the input is multiplied by that tap's part of the
kernel. With one channel a group these are products entry by entry, which XLA
fuses into one pass over the input.
"""

import functools
import itertools
import math
import operator
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_tlgc.ops.geometry import pad_spatial, same_pads
from keras_tlgc.sharding.per_shard import active_distribution
from keras_tlgc.types import Tensor

# So many sums XLA computes in one loop. More at once only take longer to
# compile.
SUMS_AT_ONCE = 9


def taps(
    inputs: Tensor,
    kernel: Tensor,
    groups: int,
    strides: tuple[int, ...],
    padding: str,
    data_format: str,
    dilation_rate: tuple[int, ...],
) -> Tensor:
    """Return the convolution of `inputs` with a grouped kernel.

    It takes the arguments of `keras_tlgc.ops.grouped_conv`, once checked.
    """
    *window, m, n = map(int, kernel.shape)
    dtype = keras.backend.standardize_dtype(kernel.dtype)
    if dtype in ("float16", "bfloat16"):
        # As in a convolution, only the result is rounded.
        inputs, kernel = (ops.cast(x, "float32") for x in (inputs, kernel))
    if data_format == "channels_first":
        inputs = ops.moveaxis(inputs, 1, -1)
    if padding == "same":
        pads = same_pads(
            inputs, window, strides, dilation_rate, "channels_last"
        )
        inputs = pad_spatial(inputs, pads, "channels_last")
    views = functools.partial(_views, window, strides, dilation_rate)
    kernel = ops.reshape(kernel, (math.prod(window), m, groups, n // groups))
    if m == 1:
        add_up = _products
        # On a mesh JAX has to add up the gradients of the devices itself.
        if keras.backend.backend() == "jax" and active_distribution() is None:
            add_up = _products_on_jax
        # The filters of a channel are computed one after the other, since XLA
        # is slow where they are the last axis of a product.
        outputs = [
            add_up(views, inputs, kernel[:, 0, :, i])
            for i in range(n // groups)
        ]
        outputs = _interleaved(outputs)
    else:
        outputs = _matrices(views, inputs, kernel)
    outputs = ops.cast(outputs, dtype)
    if data_format == "channels_first":
        outputs = ops.moveaxis(outputs, -1, 1)
    return outputs


def _views(
    window: Sequence[int],
    strides: Sequence[int],
    dilation_rate: Sequence[int],
    inputs: Tensor,
) -> list[Tensor]:
    """Return what each tap of the window reads at all positions."""
    reach = [
        rate * (size - 1)
        for rate, size in zip(dilation_rate, window, strict=True)
    ]
    return [
        inputs[
            (
                slice(None),
                *(
                    slice(rate * i, rate * i - last or None, stride)
                    for rate, i, last, stride in zip(
                        dilation_rate, tap, reach, strides, strict=True
                    )
                ),
            )
        ]
        for tap in itertools.product(*map(range, window))
    ]


def _products(views: Any, inputs: Tensor, kernel: Tensor) -> Tensor:
    """Return the sum, over all taps, of the views times a channel's weight.

    Args:
        views: function of the inputs that returns the view of each tap.
        inputs: tensor of shape `(batch, *spatial, channels)`, padded.
        kernel: tensor of shape `(taps, channels)`.
    """
    wide = (1,) * (len(inputs.shape) - 1) + (kernel.shape[-1],)
    return functools.reduce(
        operator.add,
        (
            view * ops.reshape(tap, wide)
            for view, tap in zip(
                views(inputs), ops.unstack(kernel), strict=True
            )
        ),
    )


def _interleaved(outputs: Sequence[Tensor]) -> Tensor:
    """Put the filters of a channel next to each other."""
    if len(outputs) == 1:
        return outputs[0]
    shape = ops.shape(outputs[0])
    stacked = ops.stack(outputs, axis=-1)
    return ops.reshape(stacked, (*shape[:-1], shape[-1] * len(outputs)))


def _matrices(views: Any, inputs: Tensor, kernel: Tensor) -> Tensor:
    """Return the sum, over all taps, of the views times a group's matrix.

    `kernel` is of shape `(taps, m, groups, filters of a group)`.
    """
    _, m, groups, n = kernel.shape
    at = "bxyz"[: len(inputs.shape) - 1]
    total = 0.0
    for view, tap in zip(views(inputs), ops.unstack(kernel), strict=True):
        shape = ops.shape(view)[:-1]
        view = ops.reshape(view, (*shape, groups, m))
        total = total + ops.einsum(f"{at}gm,mgn->{at}gn", view, tap)
    return ops.reshape(total, (*shape, groups * n))


def _products_on_jax(views: Any, inputs: Tensor, kernel: Tensor) -> Tensor:
    """Return `_products`, with another gradient of the kernel.

    The gradient of a tap is a sum over all positions. XLA would compute one
    after the other, and read inputs and outputs anew for each of them.
    """
    import jax

    compute: Any = jax.custom_vjp(functools.partial(_products, views))

    def forward(inputs: Tensor, kernel: Tensor) -> tuple[Tensor, Any]:
        return compute(inputs, kernel), (inputs, kernel)

    def backward(kept: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        inputs, kernel = kept
        transposed = jax.linear_transpose(
            lambda inputs: _products(views, inputs, kernel), inputs
        )
        [of_inputs] = transposed(gradient)
        return of_inputs, _kernel_gradient(views(inputs), gradient)

    compute.defvjp(forward, backward)
    return compute(inputs, kernel)


def _kernel_gradient(views: Sequence[Tensor], gradient: Tensor) -> Tensor:
    """Return the gradient of the kernel, of shape `(taps, channels)`."""
    import jax
    import jax.numpy as jnp

    axis = gradient.ndim - 2
    sums: list[Tensor] = []
    for first in range(0, len(views), SUMS_AT_ONCE):
        some = tuple(
            view * gradient for view in views[first : first + SUMS_AT_ONCE]
        )
        zeros = (jnp.zeros((), gradient.dtype),) * len(some)
        # Along the last spatial axis, all of these are summed up in one loop.
        sums += jax.lax.reduce(some, zeros, _add_each, (axis,))
    return jnp.stack(sums).sum(range(1, axis + 1))


def _add_each(sums: Sequence[Tensor], terms: Sequence[Tensor]) -> Any:
    return tuple(a + b for a, b in zip(sums, terms, strict=True))
