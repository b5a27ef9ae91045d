import functools
import math

import keras
import numpy as np

from keras_tlgc.layers.answers import Exchange, positions
from keras_tlgc.layers.base_group_conv import BaseGroupConv, serialize
from keras_tlgc.layers.plain import PlainConv, plain_conv, pointwise
from keras_tlgc.ops.balanced_conv import balanced_conv, balanced_kernel
from keras_tlgc.variables import kernel_size, with_rank


class BaseBalancedGroupConv(BaseGroupConv):
    """Balanced group convolution of any rank. See `BalancedGroupConv2D`."""

    def __init__(
        self,
        *args,
        balance_initializer="glorot_uniform",
        balance_regularizer=None,
        balance_constraint=None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.balance_initializer = keras.initializers.get(balance_initializer)
        self.balance_regularizer = keras.regularizers.get(balance_regularizer)
        self.balance_constraint = keras.constraints.get(balance_constraint)

    def build_coarse_level(self, channels):
        self._balance_kernel = self.add_one(
            with_rank("balance_kernel", self.rank),
            (*self.kernel_size, channels // self.groups, self.filters),
            "balance",
        )

    @property
    def balance_kernel(self):
        """B: its variable or, once LoRA is enabled, the merged tensor."""
        return self.merged(self._balance_kernel)

    @property
    def sharded_kernels(self):
        return [self._kernel, self._balance_kernel]

    def group_op(self, padding):
        return functools.partial(
            balanced_conv,
            all_groups=self.groups,
            lowering=self.lowering,
            **self.window(padding),
        )

    def exchanges(self, split, input_shape, output_shape, devices):
        if split == -1:
            entries = math.prod(input_shape) // self.groups
            at = positions(self, input_shape, output_shape)
            fine = at * kernel_size(self, coarse=False) // devices
            # Backward, the gradient of the mean is added up in the same way.
            yield Exchange("all-reduce", entries, "coarse", 2, hidden_by=fine)

    def plain_forms(self, sizes):
        m, n = self.kernel.shape[-2], self.groups
        mean = np.tile(np.eye(m, dtype="float32") / n, (n, 1))
        fine = plain_conv(self, "fine", self.kernel, sizes, n)
        balance = plain_conv(self, "balance", self.balance_kernel, sizes)
        dense = plain_conv(self, "dense", self.dense_kernel(), sizes)
        averaged: list[PlainConv] = [
            pointwise("mean", mean, self.rank),
            balance,
        ]
        return [[[fine], averaged], [[dense]]]

    def dense_kernel(self):
        """Return the kernel of the one standard convolution this layer equals.

        Returns:
            Tensor of shape `kernel_size + (m, n)`, for m input channels and n
            filters: `blockdiag(G)` plus `B / N` for every group of inputs.

        Raises:
            ValueError: if the layer has no weights yet.
        """
        self.check_built("dense_kernel")
        return balanced_kernel(self.kernel, self.balance_kernel, self.groups)

    def get_config(self):
        return {
            **super().get_config(),
            **serialize(
                self,
                "balance_initializer",
                "balance_regularizer",
                "balance_constraint",
            ),
        }


@keras.saving.register_keras_serializable(package="keras_tlgc")
class BalancedGroupConv1D(BaseBalancedGroupConv):
    """1D balanced group convolution.

    This is the 1D form of `BalancedGroupConv2D`. It also allows
    `padding="causal"`.

    It takes the arguments of `keras.layers.Conv1D`, in their order, and by name
    those of B and `lowering`: see `BalancedGroupConv2D`.

    Input shape:
        `(batch, steps, m)` or, with `data_format="channels_first"`,
        `(batch, m, steps)`.

    Output shape:
        `(batch, new_steps, filters)` or `(batch, filters, new_steps)`.

    Example:

    >>> x = np.random.rand(4, 10, 32)
    >>> layer = keras_tlgc.layers.BalancedGroupConv1D(
    ...     64, 3, padding="causal", groups=4
    ... )
    >>> layer(x).shape
    (4, 10, 64)
    """

    rank = 1


@keras.saving.register_keras_serializable(package="keras_tlgc")
class BalancedGroupConv2D(BaseBalancedGroupConv):
    """2D balanced group convolution: each group also sees the groups' mean.

    The authors of two-level group convolution proposed it after that one (Lee
    and Park 2023, arXiv 2310.12461). The k by k convolution B takes the mean of
    the N groups of input channels, `x_mean`, to the filters of all groups:

        y_j = G_j x_j + B_j x_mean   (+ bias, then activation)

    For m input channels and n filters it has `2*k*k*m*n/N` kernel parameters,
    twice those of `GroupConv2D`. It equals one standard convolution with the
    kernel `dense_kernel()`. Its attributes `kernel` and `balance_kernel` are G
    and B.

    Over the devices of a mesh it adds up the `m/N` channels of the mean, at the
    positions of the inputs. Where m is 640 and N is 8 these are 80, and
    `TwoLevelGroupConv2D` gathers 8.

    Args:
        filters: int, the number n of output channels.
        kernel_size: int or tuple of 2 integers, the window of G and B.
        strides: int or tuple of 2 integers. Strides above 1 cannot be combined
            with a dilation rate above 1.
        padding: `"valid"` or `"same"`, as in `keras.layers.Conv2D`.
        data_format: `"channels_last"` or `"channels_first"`. Defaults to
            `keras.config.image_data_format()`.
        dilation_rate: int or tuple of 2 integers.
        groups: int, the number N of groups. It must divide `filters` and the
            input's channels.
        activation: activation function or its name. `None` applies none.
        use_bias: bool, whether to add a bias vector.
        kernel_initializer: initializer of G.
        bias_initializer: initializer of the bias.
        kernel_regularizer: optional regularizer of G.
        bias_regularizer: optional regularizer of the bias.
        activity_regularizer: optional regularizer of the output.
        kernel_constraint: optional constraint on G.
        bias_constraint: optional constraint on the bias.
        balance_initializer: initializer of B.
        balance_regularizer: optional regularizer of B.
        balance_constraint: optional constraint on B.
        lowering: how G is computed: see `keras_tlgc.ops.grouped_conv`.
        **kwargs: `lora_rank` and `lora_alpha`, with which LoRA is enabled once
            the layer has weights (see `GroupConv2D`), and `name`, `dtype`,
            `trainable` (see `keras.layers.Layer`).

    Input shape:
        `(batch, height, width, m)` or, with `data_format="channels_first"`,
        `(batch, m, height, width)`. Batch and spatial sizes may be unknown.

    Output shape:
        `(batch, new_height, new_width, filters)` or
        `(batch, filters, new_height, new_width)`.

    Raises:
        ValueError: if an argument is out of its range, if `groups` does not
            divide the channels or the filters, or if the window does not fit
            into the input.

    Example:

    >>> x = np.random.rand(4, 10, 10, 32)
    >>> layer = keras_tlgc.layers.BalancedGroupConv2D(64, 3, groups=4)
    >>> layer(x).shape
    (4, 8, 8, 64)
    >>> [(w.name, w.shape) for w in layer.weights]
    [('group_kernel', (3, 3, 8, 64)), ('group_bias', (64,)), \
('balance_kernel', (3, 3, 8, 64))]
    """

    rank = 2


@keras.saving.register_keras_serializable(package="keras_tlgc")
class BalancedGroupConv3D(BaseBalancedGroupConv):
    """3D balanced group convolution.

    This is the 3D form of `BalancedGroupConv2D`.

    It takes the arguments of `keras.layers.Conv3D`, in their order, and by name
    those of B and `lowering`: see `BalancedGroupConv2D`.

    Input shape:
        `(batch, depth, height, width, m)` or, with
        `data_format="channels_first"`, `(batch, m, depth, height, width)`.

    Output shape:
        `(batch, new_depth, new_height, new_width, filters)` or
        `(batch, filters, new_depth, new_height, new_width)`.

    Example:

    >>> x = np.random.rand(4, 6, 6, 6, 32)
    >>> layer = keras_tlgc.layers.BalancedGroupConv3D(64, 3, groups=4)
    >>> layer(x).shape
    (4, 4, 4, 4, 64)
    """

    rank = 3
