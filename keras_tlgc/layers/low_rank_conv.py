import functools
import math

import keras

from keras_tlgc.layers.base_group_conv import serialize
from keras_tlgc.layers.coarse_level import CoarseLevelConv
from keras_tlgc.layers.plain import plain_conv, pointwise
from keras_tlgc.ops.low_rank_conv import low_rank_conv, low_rank_kernel
from keras_tlgc.sharding.per_shard import check_fits_mesh
from keras_tlgc.validation import positive_int
from keras_tlgc.variables import with_rank


class BaseLowRankConv(CoarseLevelConv):
    """Low-rank convolution in groups of any rank. See `LowRankConv2D`."""

    def __init__(
        self,
        *args,
        coarse_channels=1,
        coarse_initializer="glorot_uniform",
        coarse_regularizer=None,
        coarse_constraint=None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.coarse_channels = positive_int("coarse_channels", coarse_channels)
        self.coarse_initializer = keras.initializers.get(coarse_initializer)
        self.coarse_regularizer = keras.regularizers.get(coarse_regularizer)
        self.coarse_constraint = keras.constraints.get(coarse_constraint)

    def check_filters(self):
        """Accept any number of filters, since C is dense."""

    def build_kernel(self, channels):
        name = with_rank("restriction_kernel", self.rank)
        check_fits_mesh(f"{self.path}/{name}", "groups", self.groups)
        path = f"{self.path}/coarse_kernel"
        check_fits_mesh(path, self.filters_name, self.filters)
        coarse = self.gathered_channels
        self._restriction_kernel = self.add_kernel(
            name, channels // self.groups, coarse
        )
        self._coarse_kernel = self.add_one(
            "coarse_kernel", (coarse, self.filters), "coarse"
        )

    @property
    def sharded_kernels(self):
        return [self._restriction_kernel, self._coarse_kernel]

    @property
    def adapted_kernels(self):
        # The devices of a mesh divide the groups and the filters, so each of
        # them holds whole parts of C.
        parts = math.gcd(self.groups, self.filters)
        return [
            (self._restriction_kernel, self.groups),
            (self._coarse_kernel, parts),
        ]

    def group_op(self, padding):
        return functools.partial(
            low_rank_conv, lowering=self.lowering, **self.window(padding)
        )

    def plain_forms(self, sizes):
        restriction = plain_conv(
            self, "restriction", self.restriction_kernel, sizes, self.groups
        )
        coarse = pointwise("coarse", self.coarse_kernel, self.rank)
        dense = plain_conv(self, "dense", self.dense_kernel(), sizes)
        return [[[restriction, coarse]], [[dense]]]

    def dense_kernel(self):
        """Return the kernel of the one standard convolution this layer equals.

        Returns:
            Tensor of shape `kernel_size + (m, n)`, for m input channels and n
            filters: `C R`.

        Raises:
            ValueError: if the layer has no weights yet.
        """
        self.check_built("dense_kernel")
        return low_rank_kernel(
            self.restriction_kernel, self.coarse_kernel, self.groups
        )

    def get_config(self):
        return {
            **super().get_config(),
            "coarse_channels": self.coarse_channels,
            **serialize(
                self,
                "coarse_initializer",
                "coarse_regularizer",
                "coarse_constraint",
            ),
        }


@keras.saving.register_keras_serializable(package="keras_tlgc")
class LowRankConv1D(BaseLowRankConv):
    """1D low-rank convolution in groups.

    This is the 1D form of `LowRankConv2D`. It also allows `padding="causal"`.

    It takes the arguments of `keras.layers.Conv1D`, in their order, and by name
    those of the coarse channels and `lowering`: see `LowRankConv2D`.

    Input shape:
        `(batch, steps, m)` or, with `data_format="channels_first"`,
        `(batch, m, steps)`.

    Output shape:
        `(batch, new_steps, filters)` or `(batch, filters, new_steps)`.

    Example:

    >>> x = np.random.rand(4, 10, 32)
    >>> layer = keras_tlgc.layers.LowRankConv1D(
    ...     64, 3, padding="causal", groups=4, coarse_channels=8
    ... )
    >>> layer(x).shape
    (4, 10, 64)
    """

    rank = 1


@keras.saving.register_keras_serializable(package="keras_tlgc")
class LowRankConv2D(BaseLowRankConv):
    """2D low-rank convolution in groups: two plain convolutions in one layer.

    It is the coarse level of `TwoLevelGroupConv2D` alone. A k by k convolution
    R condenses each of N groups of input channels to `coarse_channels`
    channels, and a dense 1x1 convolution C makes all filters of all of these:

        y = C R x   (+ bias, then activation)

    For m input channels, n filters and r coarse channels in each group it has
    `k*k*m*r` (R) `+ N*r*n` (C) kernel parameters. With one group this is a
    plain convolution of rank r; N groups have N r coarse channels for the same
    R, so that at the same cost the rank is up to N times as high. It equals one
    standard convolution with the kernel `dense_kernel()`. Its attributes
    `restriction_kernel` and `coarse_kernel` are R and C.

    A trained convolution that is converted keeps most in this form. Over the
    devices of a mesh, though, it exchanges N r channels, which are many if r is
    large: there `TwoLevelGroupConv2D` with a small r exchanges fewer.

    Args:
        filters: int, the number n of output channels. On a mesh, the devices
            along the model axis must divide it.
        kernel_size: int or tuple of 2 integers, the window of R.
        strides: int or tuple of 2 integers. Strides above 1 cannot be combined
            with a dilation rate above 1.
        padding: `"valid"` or `"same"`, as in `keras.layers.Conv2D`.
        data_format: `"channels_last"` or `"channels_first"`. Defaults to
            `keras.config.image_data_format()`.
        dilation_rate: int or tuple of 2 integers.
        groups: int, the number N of groups. It must divide the input's
            channels, but not `filters`.
        activation: activation function or its name. `None` applies none.
        use_bias: bool, whether to add a bias vector.
        kernel_initializer: initializer of R.
        bias_initializer: initializer of the bias.
        kernel_regularizer: optional regularizer of R.
        bias_regularizer: optional regularizer of the bias.
        activity_regularizer: optional regularizer of the output.
        kernel_constraint: optional constraint on R.
        bias_constraint: optional constraint on the bias.
        coarse_channels: int, the number r of coarse channels of each group.
        coarse_initializer: initializer of C.
        coarse_regularizer: optional regularizer of C.
        coarse_constraint: optional constraint on C.
        lowering: how R is computed: see `keras_tlgc.ops.grouped_conv`.
        **kwargs: `lora_rank` and `lora_alpha`, with which LoRA is enabled once
            the layer has weights (see `GroupConv2D`), and `name`, `dtype`,
            `trainable` (see `keras.layers.Layer`). LoRA adapts R in its N
            groups, and C in as many parts as divide both N and n.

    Input shape:
        `(batch, height, width, m)` or, with `data_format="channels_first"`,
        `(batch, m, height, width)`. Batch and spatial sizes may be unknown.

    Output shape:
        `(batch, new_height, new_width, filters)` or
        `(batch, filters, new_height, new_width)`.

    Raises:
        ValueError: if an argument is out of its range, if `groups` does not
            divide the input's channels, or if the window does not fit into the
            input.

    Example:

    >>> x = np.random.rand(4, 10, 10, 128)
    >>> layer = keras_tlgc.layers.LowRankConv2D(
    ...     30, 3, groups=4, coarse_channels=8
    ... )
    >>> layer(x).shape
    (4, 8, 8, 30)
    >>> [(w.name, w.shape) for w in layer.weights]
    [('restriction_kernel', (3, 3, 32, 32)), ('coarse_kernel', (32, 30)), \
('group_bias', (30,))]
    """

    rank = 2


@keras.saving.register_keras_serializable(package="keras_tlgc")
class LowRankConv3D(BaseLowRankConv):
    """3D low-rank convolution in groups.

    This is the 3D form of `LowRankConv2D`.

    It takes the arguments of `keras.layers.Conv3D`, in their order, and by name
    those of the coarse channels and `lowering`: see `LowRankConv2D`.

    Input shape:
        `(batch, depth, height, width, m)` or, with
        `data_format="channels_first"`, `(batch, m, depth, height, width)`.

    Output shape:
        `(batch, new_depth, new_height, new_width, filters)` or
        `(batch, filters, new_depth, new_height, new_width)`.

    Example:

    >>> x = np.random.rand(4, 6, 6, 6, 32)
    >>> layer = keras_tlgc.layers.LowRankConv3D(
    ...     64, 3, groups=4, coarse_channels=8
    ... )
    >>> layer(x).shape
    (4, 4, 4, 4, 64)
    """

    rank = 3
