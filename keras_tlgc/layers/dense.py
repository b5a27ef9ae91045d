"""`Dense` layers whose units are in groups: convolutions without a window."""

import keras
from keras import ops

from keras_tlgc.layers.base_group_conv import BaseGroupConv
from keras_tlgc.layers.low_rank_conv import BaseLowRankConv
from keras_tlgc.layers.plain import PlainConv
from keras_tlgc.layers.two_level_group_conv import BaseTwoLevelGroupConv
from keras_tlgc.ops.lowerings import block_diagonal


class WithoutWindow:
    """The arguments and the shapes of `keras.layers.Dense`, for a base class.

    A `Dense` layer is a convolution of rank 0: its kernel has no spatial axes,
    and meets the last axis of the inputs at each position of all the others. A
    class inherits this before `BaseGroupConv` or one of its subclasses.
    """

    rank = 0
    filters_name = "units"
    # Groups never share a product.
    shared_window: tuple[int, ...] | None = None
    # There is no window, and only one lowering.
    not_arguments: tuple[str, ...] = (
        "filters",
        "kernel_size",
        "strides",
        "padding",
        "data_format",
        "dilation_rate",
        "lowering",
        "coarse_kernel_size",
    )

    def __init__(
        self,
        units,
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
        **kwargs,
    ):
        if unknown := [name for name in self.not_arguments if name in kwargs]:
            raise ValueError(
                "A `Dense` layer in groups has no window and one lowering. "
                f"Received: {', '.join(unknown)}. Leave that out, and pass "
                "`units` for the number of outputs."
            )
        super().__init__(
            units,
            kernel_size=(),
            data_format="channels_last",
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
            **kwargs,
        )

    @property
    def units(self):
        """The number of outputs at each position."""
        return self.filters

    def build(self, input_shape):
        super().build(input_shape)
        self.input_spec = keras.InputSpec(
            min_ndim=2, axes={-1: input_shape[-1]}
        )

    def plain_forms(self, sizes):
        """Return the layer as one `Dense`: those of Keras have no groups."""
        return [[[PlainConv("dense", self.dense_kernel())]]]

    def get_config(self):
        config = super().get_config()
        for name in self.not_arguments:
            config.pop(name, None)
        return {**config, "units": self.units}

    def _check_input_shape(self, input_shape):
        if not 2 <= len(input_shape) <= 8 or input_shape[-1] is None:
            raise ValueError(
                "The input must have 2 to 8 dimensions, (batch, ..., "
                "features), of which the last is known. Received: "
                f"input_shape={tuple(input_shape)}. Reshape it, or give it a "
                "fixed last dimension."
            )
        self._check_divisible("input features", input_shape[-1])


@keras.saving.register_keras_serializable(package="keras_tlgc")
class GroupDense(WithoutWindow, BaseGroupConv):
    """Dense layer in groups, which exchange nothing.

    It is `GroupConv2D` without a window: a `keras.layers.Dense` whose kernel is
    block diagonal. Let `x_i` be the i-th of `groups` blocks of the inputs' last
    axis and `y_i` the i-th block of the outputs; then `y_i = G_i x_i` (Lee,
    Park, Lee, "Two-level Group Convolution", eq. 2.9). With m input features it
    has `m * units / groups` kernel parameters. It computes what a `Conv1D` of
    kernel size 1 and as many groups does, for inputs of any number of axes.

    Args:
        units: int, the number n of outputs at each position.
        groups: int, the number N of groups. It must divide `units` and the
            input's last axis.
        activation: activation function or its name. `None` applies none.
        use_bias: bool, whether to add a bias vector.
        kernel_initializer: initializer of the kernel.
        bias_initializer: initializer of the bias.
        kernel_regularizer: optional regularizer of the kernel.
        bias_regularizer: optional regularizer of the bias.
        activity_regularizer: optional regularizer of the output.
        kernel_constraint: optional constraint on the kernel.
        bias_constraint: optional constraint on the bias.
        **kwargs: `lora_rank` and `lora_alpha`, with which LoRA is enabled once
            the layer has weights (see `GroupConv2D`), and `name`, `dtype`,
            `trainable` (see `keras.layers.Layer`).

    Input shape:
        `(batch, ..., m)`, of 2 to 8 axes. All but the last may be unknown.

    Output shape:
        `(batch, ..., units)`.

    Raises:
        ValueError: if an argument is out of its range or one of a window, or if
            `groups` does not divide the units or the input's last axis.

    Example:

    >>> x = np.random.rand(4, 10, 128)
    >>> layer = keras_tlgc.layers.GroupDense(32, groups=4)
    >>> layer(x).shape
    (4, 10, 32)
    >>> [(w.name, w.shape) for w in layer.weights]
    [('group_kernel_0d', (32, 32)), ('group_bias', (32,))]
    """


@keras.saving.register_keras_serializable(package="keras_tlgc")
class TwoLevelGroupDense(WithoutWindow, BaseTwoLevelGroupConv):
    """Dense layer of two levels: its groups exchange data at a low price.

    It is `TwoLevelGroupConv2D` without a window, for the pointwise products of
    transformers, mixers and ConvNeXt (eq. 3.5 of the paper):

        y = G x + C R x   (+ bias, then activation)

    With m input features, n units, N groups and r coarse channels in each it
    has `m*n/N` (G) `+ m*r` (R) `+ N*r*n` (C) kernel parameters. If the coarse
    kernel is zero, it is `GroupDense`. It equals one `keras.layers.Dense` with
    the kernel `dense_kernel()`. Its attributes `kernel`, `restriction_kernel`
    and `coarse_kernel` are G, R and C.

    It takes the arguments of `GroupDense`, in their order, and by name
    `coarse_channels` (1) and the `initializer`, `regularizer` and `constraint`
    of `restriction_` and `coarse_`: see `TwoLevelGroupConv2D`.

    Input shape:
        `(batch, ..., m)`, of 2 to 8 axes. All but the last may be unknown.

    Output shape:
        `(batch, ..., units)`.

    Raises:
        ValueError: as in `GroupDense`.

    Example:

    >>> x = np.random.rand(4, 10, 128)
    >>> layer = keras_tlgc.layers.TwoLevelGroupDense(32, groups=4)
    >>> layer(x).shape
    (4, 10, 32)
    >>> [(w.name, w.shape) for w in layer.weights]
    [('group_kernel_0d', (32, 32)), ('group_bias', (32,)), \
('restriction_kernel_0d', (32, 4)), ('coarse_kernel', (4, 32))]
    """


@keras.saving.register_keras_serializable(package="keras_tlgc")
class LowRankDense(WithoutWindow, BaseLowRankConv):
    """Dense layer of low rank, in groups: two products in one layer.

    It is `LowRankConv2D` without a window: `y = C R x` (+ bias, then
    activation). R condenses each of N groups of the m input features to r
    coarse channels, and C makes all n units of all of these: `m*r + N*r*n`
    kernel parameters. With one group this is the usual low-rank factorisation
    of a `keras.layers.Dense`. It equals one with the kernel `dense_kernel()`.
    Its attributes `restriction_kernel` and `coarse_kernel` are R and C.

    It takes the arguments of `GroupDense`, in their order, where `groups` need
    not divide `units`, and by name `coarse_channels` (1) and the `initializer`,
    `regularizer` and `constraint` of `coarse_`: see `LowRankConv2D`.

    Input shape:
        `(batch, ..., m)`, of 2 to 8 axes. All but the last may be unknown.

    Output shape:
        `(batch, ..., units)`.

    Raises:
        ValueError: if an argument is out of its range or one of a window, or if
            `groups` does not divide the input's last axis.

    Example:

    >>> x = np.random.rand(4, 10, 128)
    >>> layer = keras_tlgc.layers.LowRankDense(30, coarse_channels=8)
    >>> layer(x).shape
    (4, 10, 30)
    >>> [(w.name, w.shape) for w in layer.weights]
    [('restriction_kernel_0d', (128, 8)), ('coarse_kernel', (8, 30)), \
('group_bias', (30,))]
    """

    def plain_forms(self, sizes):
        """Return the layer as one `Dense`, or as two, R with zeros."""
        restriction = ops.convert_to_tensor(self.restriction_kernel)
        chain = [
            PlainConv("restriction", block_diagonal(restriction, self.groups)),
            PlainConv("coarse", ops.convert_to_tensor(self.coarse_kernel)),
        ]
        return [[chain], *super().plain_forms(sizes)]
