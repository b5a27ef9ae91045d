"""Stochastic gradient descent as the paper's networks were trained with."""

import keras
from keras import ops

from keras_tlgc._keras import SGDWithoutDecay


@keras.saving.register_keras_serializable(package="keras_tlgc")
class CoupledSGD(SGDWithoutDecay):
    """`keras.optimizers.SGD` that computes what PyTorch's SGD does.

    With gradient g, rate a, momentum m and weight decay d, a step is

        v = m v + (g + d w)
        w = w - a v

    In Keras' own SGD the decay is decoupled: `w = w - a d w` bypasses the
    momentum. And the rate is part of `v`, so that a lower rate takes a while to
    set in. So a recipe written for PyTorch, such as the paper's, is another
    recipe there.

    It takes the arguments of `keras.optimizers.SGD`. All trainable variables
    decay, as in PyTorch, except those named with `exclude_from_weight_decay`.
    The paper's networks were trained with it (Section 4).

    Args:
        learning_rate: float, or a schedule of `keras.optimizers.schedules`.
        momentum: float from 0 to 1, m above.
        nesterov: bool, whether a step looks ahead: `w = w - a (g + d w + m v)`.
        weight_decay: optional float, d above.
        **kwargs: the other arguments of `keras.optimizers.SGD`.

    Raises:
        ValueError: if an argument is out of its range, as Keras' SGD does.

    Example:

    >>> optimizer = keras_tlgc.optimizers.CoupledSGD(
    ...     0.1, momentum=0.9, weight_decay=5e-4
    ... )
    >>> optimizer.weight_decay
    0.0005
    """

    def update_step(self, gradient, variable, learning_rate):
        rate = ops.cast(learning_rate, variable.dtype)
        step = ops.cast(gradient, variable.dtype)
        if self.decays(variable):
            step = step + self.weight_decay * ops.convert_to_tensor(variable)
        if self.momentum:
            velocity = self.slot_of(self.momentums, variable)
            self.assign(velocity, self.momentum * velocity + step)
            step = (
                step + self.momentum * velocity if self.nesterov else velocity
            )
        self.assign_sub(variable, rate * step)
