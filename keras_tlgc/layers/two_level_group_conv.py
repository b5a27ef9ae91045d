import functools
import inspect

import keras
import numpy as np
from keras import ops

from keras_tlgc.layers.base_group_conv import serialize
from keras_tlgc.layers.coarse_level import CoarseLevelConv
from keras_tlgc.layers.plain import plain_conv, pointwise
from keras_tlgc.ops.geometry import margins
from keras_tlgc.ops.low_rank_conv import low_rank_kernel
from keras_tlgc.ops.lowerings import block_diagonal, check_lowering
from keras_tlgc.ops.two_level_conv import embed, two_level_conv
from keras_tlgc.validation import positive_int, positive_ints
from keras_tlgc.variables import with_rank


class BaseTwoLevelGroupConv(CoarseLevelConv):
    """Two-level group convolution of any rank. See `TwoLevelGroupConv2D`."""

    def __init__(
        self,
        *args,
        coarse_channels=1,
        coarse_kernel_size=None,
        restriction_initializer="glorot_uniform",
        coarse_initializer="glorot_uniform",
        restriction_regularizer=None,
        coarse_regularizer=None,
        restriction_constraint=None,
        coarse_constraint=None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.coarse_channels = positive_int("coarse_channels", coarse_channels)
        self.coarse_kernel_size = self.kernel_size
        if coarse_kernel_size is not None:
            self.coarse_kernel_size = positive_ints(
                "coarse_kernel_size", coarse_kernel_size, self.rank
            )
            check_lowering(self.lowering, self.coarse_kernel_size)
        get = keras.initializers.get
        self.restriction_initializer = get(restriction_initializer)
        self.coarse_initializer = get(coarse_initializer)
        get = keras.regularizers.get
        self.restriction_regularizer = get(restriction_regularizer)
        self.coarse_regularizer = get(coarse_regularizer)
        get = keras.constraints.get
        self.restriction_constraint = get(restriction_constraint)
        self.coarse_constraint = get(coarse_constraint)

    def build_coarse_level(self, channels):
        coarse = self.gathered_channels
        self._restriction_kernel = self.add_one(
            with_rank("restriction_kernel", self.rank),
            (*self.coarse_kernel_size, channels // self.groups, coarse),
            "restriction",
        )
        self._coarse_kernel = self.add_one(
            "coarse_kernel", (coarse, self.filters), "coarse"
        )

    @property
    def sharded_kernels(self):
        return [self._kernel, self._restriction_kernel, self._coarse_kernel]

    @property
    def kernel(self):
        """G: its variable or, once LoRA is enabled, the merged tensor."""
        _refuse_wrapper(self, inspect.currentframe().f_back)
        return super().kernel

    def group_op(self, padding):
        return functools.partial(
            two_level_conv,
            margins=self._margins,
            lowering=self.lowering,
            **self.window(padding),
        )

    @property
    def _margins(self):
        return margins(
            self.kernel_size, self.coarse_kernel_size, self.padding == "causal"
        )

    def plain_forms(self, sizes):
        n, inner = self.groups, self._margins
        fine = plain_conv(self, "fine", super().kernel, sizes, n)
        kernel = ops.convert_to_tensor(self.restriction_kernel)
        coarse = pointwise("coarse", self.coarse_kernel, self.rank)
        restrictions = [
            plain_conv(self, "restriction", *kernel_and_groups, margins=inner)
            for kernel_and_groups in (
                (kernel, sizes, n),
                # Few filters may be faster as one group, zeros between them.
                (block_diagonal(kernel, n), sizes),
            )
        ]
        outer = [(min(low, 0), min(high, 0)) for low, high in inner]
        dense = plain_conv(
            self, "dense", self.dense_kernel(), sizes, margins=outer
        )
        return [
            *([[fine], [restriction, coarse]] for restriction in restrictions),
            [[dense]],
        ]

    def dense_kernel(self):
        """Return the kernel of the one standard convolution this layer equals.

        Returns:
            Tensor of shape `kernel_size + (m, n)`, for m input channels and n
            filters: `blockdiag(G) + C R`. Along an axis where
            `coarse_kernel_size` is larger than `kernel_size`, the kernel has
            that size, and the equal convolution needs as much zero padding as
            this window reaches beyond the input.

        Raises:
            ValueError: if the layer has no weights yet.
        """
        fine = super().dense_kernel()
        coarse = low_rank_kernel(
            self.restriction_kernel, self.coarse_kernel, self.groups
        )
        outer = [(-low, -high) for low, high in self._margins]
        return embed(fine, outer) + embed(coarse, self._margins)

    def set_weights(self, weights):
        """Set the weights of both levels, or of the group convolution alone.

        Args:
            weights: list of arrays: `get_weights()` of this layer, or of a
                `Conv{1,2,3}D(groups=N)` or `GroupConv{1,2,3}D` of the same
                shape. With the weights of one of those, the coarse kernel is
                set to zero, so that the outputs are the same as theirs.

        Raises:
            ValueError: if the number or the shapes of the arrays do not fit.
        """
        weights = list(weights)
        is_fine_level = len(weights) == 1 + self.use_bias
        if self.built and is_fine_level and not self.lora_enabled:
            own = self.get_weights()
            weights += [own[-2], np.zeros_like(own[-1])]
        super().set_weights(weights)

    def get_config(self):
        return {
            **super().get_config(),
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
        }


def _refuse_wrapper(layer, frame):
    """Raise a `ValueError` if a wrapper's method is about to read G.

    Wrappers such as `keras.layers.SpectralNormalization` read `kernel` and take
    it for all that the layer does, but to normalise G alone bounds nothing. A
    user who reads `kernel` is to get G. Only the frame that reads it tells the
    two apart.
    """
    wrapper = frame.f_locals.get("self")
    if isinstance(wrapper, keras.layers.Wrapper):
        raise ValueError(
            f"{type(wrapper).__name__} wants the kernel of the whole layer, "
            "and there are three here, of which `kernel` is the first, G. "
            f"Received: the layer '{layer.name}', {type(layer).__name__}. "
            "Leave the wrapper out, and bound each by a constraint of its own: "
            "`kernel_constraint`, `restriction_constraint` and "
            "`coarse_constraint`."
        )


@keras.saving.register_keras_serializable(package="keras_tlgc")
class TwoLevelGroupConv1D(BaseTwoLevelGroupConv):
    """1D two-level group convolution.

    This is the 1D form of `TwoLevelGroupConv2D`. It also allows
    `padding="causal"`: then neither level looks ahead.

    It takes the arguments of `keras.layers.Conv1D`, in their order, and by name
    those of the coarse level and `lowering`: see `TwoLevelGroupConv2D`.

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
    """2D two-level group convolution: its groups exchange data at a low price.

    A group convolution G is a one-level block-Jacobi approximation of a
    convolution: its groups never exchange anything. The second level lets them:
    a restriction R condenses each group to `coarse_channels` channels, and a
    1x1 convolution C adds the coarse channels of all groups to every output
    (Lee, Park, Lee, "Two-level Group Convolution", eq. 3.5):

        y = G x + C R x   (+ bias, then activation)

    With k by k kernels (k0 by k0 for R), m input channels, n filters, N groups
    and r coarse channels, it has `k*k*m*n/N` (G) `+ k0*k0*m*r` (R) `+ N*r*n`
    (C) kernel parameters. If the coarse kernel is zero, it *is* the group
    convolution. It equals one standard convolution with the kernel
    `dense_kernel()`. Its attributes `kernel`, `restriction_kernel` and
    `coarse_kernel` are G, R and C.

    The paper has one coarse channel and k0 = k; both are arguments here. Where
    k0 differs from k, the coarse window is centred in the fine one (under
    causal padding, both end at the same step), whatever the stride, and reads
    zeros outside of the input.

    `enable_lora(q)` freezes G, R and C and trains a product of rank q beside
    each, for each group. R and C get products too, because otherwise the groups
    would go on exchanging what they exchanged before. The products have
    `q*(k*k*m + n)` (G) `+ min(q, r)*(k0*k0*m + N*r)` (R) `+ p*(N*N*r + n)` (C)
    parameters, where `p = min(q, N*r, n/N)`, and q is at most `n/N` for G.

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
        lowering: how G and R are computed: `"auto"`, `"native"`, `"slices"`,
            `"taps"`, `"dense"` or, for 1x1 kernels, `"matmul"`. See
            `keras_tlgc.ops.grouped_conv`.
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

    This is the 3D form of `TwoLevelGroupConv2D`.

    It takes the arguments of `keras.layers.Conv3D`, in their order, and by name
    those of the coarse level and `lowering`: see `TwoLevelGroupConv2D`.

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
