import keras
import numpy as np
from keras import ops

from keras_tlgc.layers.base_group_conv import BaseGroupConv, serialize
from keras_tlgc.layers.ragged_group_conv import RaggedGroupConv2D


@keras.saving.register_keras_serializable(package="keras_tlgc")
class LearnableGroupConv2D(BaseGroupConv):
    """2D group convolution that learns which channels each group holds.

    The fully learnable group convolution (FLGC) of Wang, Kan, Shan, Chen
    (CVPR 2019), which the paper compares with (Lee, Park, Lee, "Two-level
    Group Convolution", Tables 3 and 4). Selection matrices S, of m input
    channels by N groups, and T, of n filters by N groups, hold one score for
    each choice. In the forward pass each row becomes one-hot at its largest
    score, and the kernel of a standard convolution keeps the weights between
    channels and filters of one group: `kernel * (S T^t)`. Gradients reach the
    scores as if the row had been its softmax (straight-through), so that
    weights which are masked now still say whether to open them.

    So it trains at the cost of a standard convolution. For inference
    `to_group_conv()` returns a layer that holds and computes only the kept
    weights. The `k*k * m * n + N * (m + n)` stored parameters are
    `count_params()`; `count_kept_params()` tells how many stay, which for
    groups of equal size, and in the mean over fresh layers, are the
    `k*k * m * n / N` that the paper counts.

    Groups may differ in size and may be empty, so `groups` need not divide
    anything. A filter whose group has no channels is its bias alone.

    The paper does not say how the scores start, how the kernel is scaled or
    which gradient the scores get: here they are normal with variance 1 and the
    kernel starts as that of a standard convolution. Every score gets its
    gradient, not the largest alone.

    Takes the arguments of `keras.layers.Conv2D`, in its order (see
    `GroupConv2D`), then:

    Args:
        selection_initializer: initializer of the scores in S and T. `None` is
            a normal distribution of variance 1.

    Input shape:
        `(batch, height, width, m)` or, with `data_format="channels_first"`,
        `(batch, m, height, width)`.

    Output shape:
        `(batch, new_height, new_width, filters)` or
        `(batch, filters, new_height, new_width)`.

    Raises:
        ValueError: if an argument is out of its range, or the window does not
            fit into the input.

    Example:

    >>> x = np.random.rand(4, 10, 10, 128)
    >>> layer = keras_tlgc.layers.LearnableGroupConv2D(32, 3, groups=4)
    >>> layer(x).shape
    (4, 8, 8, 32)
    >>> fast = layer.to_group_conv()
    >>> bool(keras.ops.max(keras.ops.abs(fast(x) - layer(x))) < 1e-5)
    True
    """

    rank = 2
    equal_groups = False

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
        selection_initializer=None,
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
            lowering="auto",  # Not an argument: the dense kernel needs none.
            **kwargs,
        )
        if selection_initializer is None:
            selection_initializer = keras.initializers.RandomNormal(stddev=1.0)
        self.selection_initializer = keras.initializers.get(
            selection_initializer
        )

    def build_kernel(self, channels):
        self.kernel = self.add_kernel("masked_kernel", channels, self.filters)
        both = (channels + self.filters, self.groups)
        self.input_selection = self._add_selection(
            "input_selection", both, slice(channels)
        )
        self.output_selection = self._add_selection(
            "output_selection", both, slice(channels, None)
        )

    def _add_selection(self, name, both, rows):
        # An initializer gives one value to one shape, and S and T may have
        # one: each takes its rows of what it gives to both together.
        return self.add_weight(
            name=name,
            shape=(len(range(both[0])[rows]), self.groups),
            initializer=lambda shape, dtype=None: self.selection_initializer(
                both, dtype=dtype
            )[rows],
            autocast=False,  # Rounded scores could tie.
        )

    def convolve(self, inputs, padding):
        return self.dense_conv(inputs, self._masked_kernel(), padding)

    def _masked_kernel(self):
        mask = ops.einsum(
            "mg,ng->mn",
            _select(ops.convert_to_tensor(self.input_selection)),
            _select(ops.convert_to_tensor(self.output_selection)),
        )
        kernel = ops.convert_to_tensor(self.kernel)
        return kernel * ops.cast(mask, kernel.dtype)

    def dense_kernel(self):
        """Return the kernel of the one standard convolution this layer equals.

        Returns:
            Tensor of shape `kernel_size + (m, n)`, for m input channels and n
            filters, zero between channels and filters of different groups.

        Raises:
            ValueError: if the layer has no weights yet.
        """
        self.check_built("dense_kernel")
        return self._masked_kernel()

    def count_kept_params(self):
        """Return how many parameters `to_group_conv()` keeps at present.

        Raises:
            ValueError: if the layer has no weights yet.
        """
        self.check_built("count_kept_params")
        pairs = zip(*self._groups(), strict=True)
        weights = sum(
            len(channels) * len(filters) for channels, filters in pairs
        )
        bias = self.filters if self.use_bias else 0
        return int(np.prod(self.kernel_size)) * weights + bias

    def to_group_conv(self):
        """Return a layer that computes the same with the kept weights alone.

        In a whole model:

            fast = keras.models.clone_model(
                model,
                clone_function=lambda layer: layer.to_group_conv()
                if isinstance(layer, LearnableGroupConv2D)
                else layer,
                recursive=True,
            )

        which shares all other layers with `model`.

        Returns:
            A built `RaggedGroupConv2D` of this layer's name and settings.

        Raises:
            ValueError: if the layer has no weights yet.
        """
        self.check_built("to_group_conv")
        input_groups, output_groups = self._groups()
        config = self.get_config()
        del config["groups"], config["selection_initializer"]
        layer = RaggedGroupConv2D.from_config(
            {
                **config,
                "input_groups": input_groups,
                "output_groups": output_groups,
            }
        )
        shape = [None] * (self.rank + 2)
        shape[self.channel_axis] = self.kernel.shape[-2]
        layer.build(shape)
        kernel = ops.convert_to_numpy(self.kernel)
        layer.set_weights(
            [
                *(
                    kernel[..., channels, :][..., filters]
                    for channels, filters in zip(
                        input_groups, output_groups, strict=True
                    )
                    if channels and filters
                ),
                *([ops.convert_to_numpy(self.bias)] if self.use_bias else []),
            ]
        )
        return layer

    def _groups(self):
        """Return the channels and the filters of each group."""
        return [
            [
                np.flatnonzero(chosen == group).tolist()
                for group in range(self.groups)
            ]
            for chosen in (
                ops.convert_to_numpy(ops.argmax(selection, axis=-1))
                for selection in (self.input_selection, self.output_selection)
            )
        ]

    def get_config(self):
        config = super().get_config()
        del config["lowering"]
        return {**config, **serialize(self, "selection_initializer")}


def _select(scores):
    """Make each row one-hot at its largest entry, with softmax's gradient."""
    # ops.softmax warns of rows of one entry, a single group.
    soft = ops.exp(scores - ops.logsumexp(scores, axis=-1, keepdims=True))
    hard = ops.one_hot(
        ops.argmax(scores, axis=-1), scores.shape[-1], dtype=soft.dtype
    )
    return hard + (soft - ops.stop_gradient(soft))
