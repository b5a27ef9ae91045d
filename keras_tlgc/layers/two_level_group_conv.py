import keras
import numpy as np
from keras import ops

from keras_tlgc.layers.base_group_conv import (
    BaseGroupConv,
    kernel_name,
    serialize,
)
from keras_tlgc.ops.geometry import margins, same_padding
from keras_tlgc.ops.grouped_conv import block_diagonal, check_lowering
from keras_tlgc.ops.pointwise import add_pointwise
from keras_tlgc.validation import positive_int, positive_ints


class BaseTwoLevelGroupConv(BaseGroupConv):
    """Two-level group convolution of any rank. See `TwoLevelGroupConv2D`."""

    def __init__(
        self,
        filters,
        kernel_size,
        strides=1,
        padding="valid",
        data_format=None,
        dilation_rate=1,
        groups=1,
        activation=None,
        use_bias=True,
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        activity_regularizer=None,
        kernel_constraint=None,
        bias_constraint=None,
        coarse_channels=1,
        coarse_kernel_size=None,
        restriction_initializer="glorot_uniform",
        coarse_initializer="glorot_uniform",
        restriction_regularizer=None,
        coarse_regularizer=None,
        restriction_constraint=None,
        coarse_constraint=None,
        lowering="auto",
        **kwargs,
    ):
        super().__init__(
            filters,
            kernel_size,
            strides=strides,
            padding=padding,
            data_format=data_format,
            dilation_rate=dilation_rate,
            groups=groups,
            activation=activation,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
            kernel_constraint=kernel_constraint,
            bias_constraint=bias_constraint,
            lowering=lowering,
            **kwargs,
        )
        self.coarse_channels = positive_int("coarse_channels", coarse_channels)
        self.coarse_kernel_size = self.kernel_size
        if coarse_kernel_size is not None:
            self.coarse_kernel_size = positive_ints(
                "coarse_kernel_size", coarse_kernel_size, self.rank
            )
            check_lowering(lowering, self.coarse_kernel_size)
        get = keras.initializers.get
        self.restriction_initializer = get(restriction_initializer)
        self.coarse_initializer = get(coarse_initializer)
        get = keras.regularizers.get
        self.restriction_regularizer = get(restriction_regularizer)
        self.coarse_regularizer = get(coarse_regularizer)
        get = keras.constraints.get
        self.restriction_constraint = get(restriction_constraint)
        self.coarse_constraint = get(coarse_constraint)

    def build(self, input_shape):
        super().build(input_shape)
        channels = input_shape[self.channel_axis]
        coarse = self.groups * self.coarse_channels
        self.restriction_kernel = self.add_weight(
            name=kernel_name("restriction_kernel", self.rank),
            shape=(*self.coarse_kernel_size, channels // self.groups, coarse),
            initializer=self.restriction_initializer,
            regularizer=self.restriction_regularizer,
            constraint=self.restriction_constraint,
        )
        self.coarse_kernel = self.add_weight(
            name="coarse_kernel",
            shape=(coarse, self.filters),
            initializer=self.coarse_initializer,
            regularizer=self.coarse_regularizer,
            constraint=self.coarse_constraint,
        )

    @property
    def sharded_kernels(self):
        return [self.kernel, self.restriction_kernel, self.coarse_kernel]

    def convolve_groups(self, inputs, kernels, groups, gather, padding):
        group_kernel, restriction_kernel, coarse_kernel = kernels
        if groups == self.groups and not self._coarse_window_is_wider:
            fine, coarse = self.grouped_convs(
                inputs,
                [group_kernel, _embed(restriction_kernel, self._margins)],
                groups,
                padding,
            )
            coarse = gather(coarse)
        else:
            # On a mesh R goes first: the gathering can overlap with G.
            coarse = gather(
                self._restrict(inputs, restriction_kernel, groups, padding)
            )
            [fine] = self.grouped_convs(inputs, [group_kernel], groups, padding)
        return add_pointwise(fine, coarse, coarse_kernel, self.data_format)

    def _restrict(self, inputs, kernel, groups, padding):
        """Condense each group to its coarse channels: R x (eq. 3.3)."""
        # A smaller coarse window runs as a kernel of zeros around it, a larger
        # one over wider padding: the only ways to stay aligned with the fine
        # window at every stride, padding and size.
        if self._coarse_window_is_wider:
            inputs = self._pad(inputs, self._coarse_pads(inputs, padding))
            padding = "valid"
        kernel = _embed(kernel, self._margins)
        return self.grouped_convs(inputs, [kernel], groups, padding)[0]

    @property
    def _coarse_window_is_wider(self):
        return any(low < 0 or high < 0 for low, high in self._margins)

    @property
    def _margins(self):
        return margins(
            self.kernel_size, self.coarse_kernel_size, self.padding == "causal"
        )

    def _coarse_pads(self, inputs, padding):
        pads = []
        for i, axis in enumerate(self.spatial_axes):
            low = high = 0
            if padding == "same":
                low, high = same_padding(
                    ops.shape(inputs)[axis],
                    self.kernel_size[i],
                    self.strides[i],
                    self.dilation_rate[i],
                )
            before, after = self._margins[i]
            low += self.dilation_rate[i] * max(-before, 0)
            high += self.dilation_rate[i] * max(-after, 0)
            pads.append((low, high))
        return pads

    def dense_kernel(self):
        """Return the kernel of the one standard convolution this layer equals.

        Returns:
            Tensor of shape `kernel_size + (m, n)`, for m input channels and n
            filters: `blockdiag(G) + C R`. Along an axis where
            `coarse_kernel_size` is the larger one, the kernel has that size,
            and the equal convolution reads zeros outside of the input as far
            as the larger window reaches.

        Raises:
            ValueError: if the layer has no weights yet.
        """
        fine = super().dense_kernel()
        restriction = ops.convert_to_tensor(self.restriction_kernel)
        spatial = "xyz"[: self.rank]
        coarse = ops.einsum(
            f"{spatial}mc,cn->{spatial}mn",
            block_diagonal(restriction, self.groups),
            ops.convert_to_tensor(self.coarse_kernel),
        )
        outer = [(-low, -high) for low, high in self._margins]
        return _embed(fine, outer) + _embed(coarse, self._margins)

    def set_weights(self, weights):
        """Set the weights, of both levels or of the group convolution alone.

        Args:
            weights: list of arrays: `get_weights()` of this layer, or of a
                `Conv{1,2,3}D(groups=N)` or `GroupConv{1,2,3}D` of the same
                shape. The latter sets the coarse kernel to zero, so that the
                outputs are that layer's.

        Raises:
            ValueError: if number or shapes of the arrays do not fit.
        """
        weights = list(weights)
        if self.built and len(weights) == 1 + self.use_bias:
            own = self.get_weights()
            weights += [own[-2], np.zeros_like(own[-1])]
        super().set_weights(weights)

    def get_config(self):
        config = super().get_config()
        lowering = config.pop("lowering")
        return {
            **config,
            "coarse_channels": self.coarse_channels,
            "coarse_kernel_size": self.coarse_kernel_size,
            **serialize(
                self,
                "restriction_initializer",
                "coarse_initializer",
                "restriction_regularizer",
                "coarse_regularizer",
                "restriction_constraint",
                "coarse_constraint",
            ),
            "lowering": lowering,
        }


def _embed(kernel, margins):
    """Surround the window of `kernel` with zeros where margins are positive."""
    pads = [(max(low, 0), max(high, 0)) for low, high in margins]
    return (
        ops.pad(kernel, [*pads, (0, 0), (0, 0)])
        if any(map(any, pads))
        else kernel
    )


@keras.saving.register_keras_serializable(package="keras_tlgc")
class TwoLevelGroupConv1D(BaseTwoLevelGroupConv):
    """1D two-level group convolution.

    The 1D form of `TwoLevelGroupConv2D`. `padding="causal"` is allowed too:
    then neither level looks ahead.

    Takes the arguments of `keras.layers.Conv1D`, in its order, then those
    of the coarse level and `lowering`: see `TwoLevelGroupConv2D`.

    Input shape:
        `(batch, steps, m)` or, with `data_format="channels_first"`,
        `(batch, m, steps)`.

    Output shape:
        `(batch, new_steps, filters)` or `(batch, filters, new_steps)`.

    Example:

    >>> x = np.random.rand(4, 10, 32)
    >>> layer = keras_tlgc.layers.TwoLevelGroupConv1D(
    ...     64, 3, padding="causal", groups=4
    ... )
    >>> layer(x).shape
    (4, 10, 64)
    """

    rank = 1


@keras.saving.register_keras_serializable(package="keras_tlgc")
class TwoLevelGroupConv2D(BaseTwoLevelGroupConv):
    """2D two-level group convolution: groups that talk, at the price of groups.

    A group convolution G is a one-level block-Jacobi approximation of a
    convolution: its groups never exchange anything. The second level does: a
    restriction R condenses each group to `coarse_channels` channels, and a
    1x1 convolution C adds the coarse channels of all groups to every output
    (Lee, Park, Lee, "Two-level Group Convolution", eq. 3.5):

        y = G x + C R x   (+ bias, then activation)

    With k by k kernels (k0 by k0 for R), m input channels, n filters, N groups
    and r coarse channels, it has `k*k*m*n/N` (G) `+ k0*k0*m*r` (R) `+ N*r*n`
    (C) kernel parameters. With the coarse kernel zero it *is* the group
    convolution. It equals one standard convolution, with `dense_kernel()`.

    The paper has one coarse channel and k0 = k; both are arguments here. Where
    k0 differs from k, the coarse window is centred in the fine one (under
    causal padding, both end at the same step), whatever the stride, and reads
    zeros outside of the input.

    Args:
        filters: int, the number n of output channels.
        kernel_size: int or tuple of 2 integers.
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
        coarse_channels: int, the number r of coarse channels of each group.
        coarse_kernel_size: int or tuple of 2 integers, the window of R.
            Defaults to `kernel_size`.
        restriction_initializer: initializer of R.
        coarse_initializer: initializer of C. With `"zeros"` training starts at
            the group convolution.
        restriction_regularizer: optional regularizer of R.
        coarse_regularizer: optional regularizer of C.
        restriction_constraint: optional constraint on R.
        coarse_constraint: optional constraint on C.
        lowering: how G and R are computed: `"auto"`, `"native"`, `"slices"`
            or, for 1x1 kernels, `"matmul"`. See `keras_tlgc.ops.grouped_conv`.
        **kwargs: `name`, `dtype`, `trainable`: see `keras.layers.Layer`.

    Input shape:
        `(batch, height, width, m)` or, with `data_format="channels_first"`,
        `(batch, m, height, width)`. Batch and spatial sizes may be unknown.

    Output shape:
        `(batch, new_height, new_width, filters)` or
        `(batch, filters, new_height, new_width)`.

    Raises:
        ValueError: if an argument is out of its range, if `groups` does not
            divide the filters or the input's channels, or if the window does
            not fit into the input.

    Example:

    >>> x = np.random.rand(4, 10, 10, 128)
    >>> layer = keras_tlgc.layers.TwoLevelGroupConv2D(32, 3, groups=4)
    >>> layer(x).shape
    (4, 8, 8, 32)
    >>> [(w.name, w.shape) for w in layer.weights]
    [('group_kernel', (3, 3, 32, 32)), ('group_bias', (32,)), \
('restriction_kernel', (3, 3, 32, 4)), ('coarse_kernel', (4, 32))]
    """

    rank = 2


@keras.saving.register_keras_serializable(package="keras_tlgc")
class TwoLevelGroupConv3D(BaseTwoLevelGroupConv):
    """3D two-level group convolution.

    The 3D form of `TwoLevelGroupConv2D`.

    Takes the arguments of `keras.layers.Conv3D`, in its order, then those
    of the coarse level and `lowering`: see `TwoLevelGroupConv2D`.

    Input shape:
        `(batch, depth, height, width, m)` or, with
        `data_format="channels_first"`, `(batch, m, depth, height, width)`.

    Output shape:
        `(batch, new_depth, new_height, new_width, filters)` or
        `(batch, filters, new_depth, new_height, new_width)`.

    Example:

    >>> x = np.random.rand(4, 6, 6, 6, 32)
    >>> layer = keras_tlgc.layers.TwoLevelGroupConv3D(64, 3, groups=4)
    >>> layer(x).shape
    (4, 4, 4, 4, 64)
    """

    rank = 3
