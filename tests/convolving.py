"""The operation as a layer, which has gradients, and compiled."""

import keras

from keras_tlgc.ops import grouped_conv


class Convolution(keras.layers.Layer):
    """The operation with its kernel as a weight, to take gradients of."""

    def __init__(self, kernel, **kwargs):
        super().__init__(dtype=keras.backend.standardize_dtype(kernel.dtype))
        self.kwargs = kwargs
        self.kernel = self.add_weight(shape=kernel.shape)
        self.kernel.assign(kernel)
        self.built = True

    def call(self, inputs):
        return grouped_conv(inputs, self.kernel, **self.kwargs)


def jitted(function):
    """Return the function, compiled as a whole on JAX, where that is faster."""
    if keras.backend.backend() != "jax":
        return function
    import jax

    return jax.jit(function)
