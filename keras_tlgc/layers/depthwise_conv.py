import keras
from keras import ops

from keras_tlgc.ops.grouped_conv import grouped_conv
from keras_tlgc.ops.lowerings import choose_lowering, device_of


@keras.saving.register_keras_serializable(package="keras_tlgc")
class DepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """Keras' depthwise convolution, without XLA's on JAX and CPUs.

    This is `keras.layers.DepthwiseConv2D`, with its arguments, variables and
    results. The only difference is that `keras_tlgc.ops.choose_lowering` says
    how it is computed: on JAX and CPUs, by the taps of its window. There a
    train step of MobileNetV2 takes a fraction of the time.

    Forward-mode differentiation (`jax.jvp`) is the one thing that it lacks
    there.

    Input shape:
        `(batch, height, width, channels)` or, with
        `data_format="channels_first"`, `(batch, channels, height, width)`.

    Output shape:
        `(batch, new_height, new_width, channels * depth_multiplier)` or
        `(batch, channels * depth_multiplier, new_height, new_width)`.

    Example:

    >>> x = np.random.rand(4, 10, 10, 32)
    >>> layer = keras_tlgc.layers.DepthwiseConv2D(3)
    >>> layer(x).shape
    (4, 8, 8, 32)
    """

    def call(self, inputs):
        lowering = choose_lowering(
            keras.backend.backend(), device_of(inputs), self.kernel_size, 1
        )
        if lowering != "taps":
            return super().call(inputs)
        # Keras keeps the filters of a channel on an axis of their own.
        *window, channels, multiplier = self.kernel.shape
        filters = channels * multiplier
        outputs = grouped_conv(
            inputs,
            ops.reshape(self.kernel, (*window, 1, filters)),
            channels,
            strides=self.strides,
            padding=self.padding,
            data_format=self.data_format,
            dilation_rate=self.dilation_rate,
            lowering=lowering,
        )
        if self.use_bias:
            first = self.data_format == "channels_first"
            shape = (1, filters, 1, 1) if first else (1, 1, 1, filters)
            outputs = ops.add(outputs, ops.reshape(self.bias, shape))
        return self.activation(outputs)
