"""Ways around what TensorFlow's dense convolutions cannot do on a CPU."""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import keras
from keras import ops

from keras_tlgc.types import Tensor

Convolution: TypeAlias = Callable[..., Tensor]


def fill_gaps(convolve: Convolution) -> Convolution:
    """Return `convolve`, made to work where TensorFlow's convolution fails.

    Its native grouped convolution, which Keras compiles with XLA, has neither
    of these gaps:

    - With oneDNN, the output for an empty batch has the shape of the input. A
      row of zeros keeps the batch from being empty. Where the size of the batch
      is known only when the graph runs, this is done only under a
      `tf.distribute.Strategy`, whose replicas can be left without data.
      Elsewhere it would become a part of every exported model.
    - Some data types are supported only with the channels last.

    Args:
        convolve: function of `(inputs, kernel, groups, data_format, **window)`
            that calls dense convolutions.

    Returns:
        Function of the same arguments, with the same results.
    """

    @functools.wraps(convolve)
    def filled(
        inputs: Tensor,
        kernel: Tensor,
        groups: int,
        data_format: str,
        **window: Any,
    ) -> Tensor:
        if keras.backend.backend() != "tensorflow":
            return convolve(inputs, kernel, groups, data_format, **window)
        first = data_format == "channels_first"
        first = first and not _has_channels_first(inputs.dtype)
        batch = _batch_that_may_be_empty(inputs)
        if batch is not None:
            inputs = _pad_empty(inputs, batch)
        if first:
            inputs = ops.moveaxis(inputs, 1, -1)
            data_format = "channels_last"
        outputs = convolve(inputs, kernel, groups, data_format, **window)
        if first:
            outputs = ops.moveaxis(outputs, -1, 1)
        return outputs if batch is None else outputs[:batch]

    return filled


def _batch_that_may_be_empty(inputs: Tensor) -> Tensor | None:
    import tensorflow as tf

    batch = inputs.shape[0]
    if batch == 0 or (batch is None and tf.distribute.has_strategy()):
        return tf.shape(inputs)[0]
    return None


def _pad_empty(inputs: Tensor, batch: Tensor) -> Tensor:
    import tensorflow as tf

    # Neither this nor the slice of the outputs copies a batch with rows.
    rows = tf.cast(tf.equal(batch, 0), "int32")
    others = [[0, 0]] * (len(inputs.shape) - 1)
    return tf.pad(inputs, [[0, rows], *others])


@functools.cache
def _has_channels_first(dtype: Any) -> bool:
    import tensorflow as tf

    with tf.init_scope():  # This runs now and is not part of what is traced.
        one = tf.ones((1, 1, 1, 1), dtype)
        try:
            tf.nn.conv2d(one, one, 1, "VALID", data_format="NCHW")
        except (tf.errors.UnimplementedError, tf.errors.InvalidArgumentError):
            return False
    return True
