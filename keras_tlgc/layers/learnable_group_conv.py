import keras
import numpy as np
from keras import ops

from keras_tlgc.layers.base_group_conv import BaseGroupConv, serialize
from keras_tlgc.layers.ragged_group_conv import RaggedGroupConv2D
from keras_tlgc.ops.grouped_conv import grouped_conv
from keras_tlgc.variables import size


@keras.saving.register_keras_serializable(package="keras_tlgc")
class LearnableGroupConv2D(BaseGroupConv):
    """2D group convolution that learns which channels each group holds.

    This is the fully learnable group convolution (FLGC) of Wang, Kan, Shan,
    Chen (CVPR 2019), which the paper compares with (Lee, Park, Lee, "Two-level
    Group Convolution", Tables 3 and 4). The selection matrices S (m input
    channels by N groups) and T (n filters by N groups) hold a score for each
    choice. In the forward pass each row becomes one-hot at its largest score.
    The kernel of a standard convolution then keeps only the weights between
    channels and filters of the same group: `kernel * (S T^t)`. Gradients reach
    the scores as if each row had been replaced by its softmax
    (straight-through), so that weights that are masked now can still be let in
    later.

    So it trains at the cost of a standard convolution. For inference
    `to_group_conv()` returns a layer that holds and computes only the kept
    weights. `count_params()` counts the stored parameters,
    `k*k * m * n + N * (m + n)`. `count_kept_params()` counts those that stay:
    for groups of equal size, and on average over new layers, these are the
    `k*k * m * n / N` that the paper counts.

    Groups may differ in size and may be empty, so `groups` need not divide
    anything. A filter whose group has no channels returns only its bias.

    The paper does not say how the scores start, how the kernel is scaled or
    which gradient the scores get. Here the scores start as normal with variance
    1, the kernel starts as that of a standard convolution, and every score gets
    its gradient, not only the largest.

    It takes the arguments of `keras.layers.Conv2D`, in their order (see
    `GroupConv2D`), and by name:

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
    not_arguments = ("lowering",)  # The dense kernel needs none.

    def __init__(self, *args, selection_initializer=None, **kwargs):
        super().__init__(*args, lowering="auto", **kwargs)
        if selection_initializer is None:
            selection_initializer = keras.initializers.RandomNormal(stddev=1.0)
        self.selection_initializer = keras.initializers.get(
            selection_initializer
        )

    def build_kernel(self, channels):
        self._kernel = self.add_kernel("masked_kernel", channels, self.filters)
        both = (channels + self.filters, self.groups)
        self.input_selection = self._add_selection(
            "input_selection", both, slice(channels)
        )
        self.output_selection = self._add_selection(
            "output_selection", both, slice(channels, None)
        )

    def _add_selection(self, name, both, rows):
        # An initializer always gives the same values to the same shape, and S
        # and T may have the same shape. So it makes both together, and each
        # takes its rows.
        return self.add_weight(
            name=name,
            shape=(len(range(both[0])[rows]), self.groups),
            initializer=lambda shape, dtype=None: self.selection_initializer(
                both, dtype=dtype
            )[rows],
            autocast=False,  # Rounded scores could tie.
        )

    @property
    def adapted_kernels(self):
        return [(self._kernel, 1)]

    def convolve(self, inputs, padding):
        kernel = self._masked_kernel()
        return grouped_conv(inputs, kernel, 1, **self.window(padding))

    def _masked_kernel(self):
        mask = ops.einsum(
            "mg,ng->mn",
            _select(ops.convert_to_tensor(self.input_selection)),
            _select(ops.convert_to_tensor(self.output_selection)),
        )
        kernel = ops.convert_to_tensor(self.kernel)
        mask = ops.reshape(mask, (1, 1, *mask.shape))
        return kernel * ops.cast(mask, kernel.dtype)

    def plain_forms(self, sizes):
        return self.to_group_conv().plain_forms(sizes)

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

    def multiply_adds(self):
        return super().multiply_adds() // self.groups

    def dropped_params(self):
        if not self.trainable or self.lora_enabled:
            return 0  # With LoRA, kernel and scores are frozen.
        scores = size(self.input_selection) + size(self.output_selection)
        return size(self._kernel) - self.multiply_adds() + scores

    def to_group_conv(self):
        """Return a layer that computes the same with only the kept weights.

        For a whole model, take:

            fast = keras.models.clone_model(
                model,
                clone_function=lambda layer: layer.to_group_conv()
                if isinstance(layer, LearnableGroupConv2D)
                else layer,
                recursive=True,
            )

        The new model shares all other layers with `model`.

        Returns:
            A built `RaggedGroupConv2D` of this layer's name and settings.

        Raises:
            ValueError: if the layer has no weights yet.
        """
        self.check_built("to_group_conv")
        input_groups, output_groups = self._groups()
        config = self.get_config()
        for name in ("groups", "selection_initializer", "lora_rank"):
            config.pop(name, None)
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
    # ops.softmax would warn about rows with one entry, of a single group.
    soft = ops.exp(scores - ops.logsumexp(scores, axis=-1, keepdims=True))
    hard = ops.one_hot(
        ops.argmax(scores, axis=-1), scores.shape[-1], dtype=soft.dtype
    )
    return hard + (soft - ops.stop_gradient(soft))
