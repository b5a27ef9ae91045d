import keras
from keras import ops

from keras_tlgc.layers.base_group_conv import BaseGroupConv
from keras_tlgc.layers.plain import PlainConv
from keras_tlgc.ops.channel_shuffle import channel_shuffle


class BaseShuffleGroupConv(BaseGroupConv):
    """Shuffled group convolution of any rank. See `ShuffleGroupConv2D`."""

    # `folded` puts the scales into the order that the weights have.
    foldable = True

    def call(self, inputs):
        return channel_shuffle(
            super().call(inputs), self.groups, self.data_format
        )

    def plain_forms(self, sizes):
        [[fine]], dense = super().plain_forms(sizes)
        shuffle = channel_shuffle(
            ops.eye(self.filters), self.groups, "channels_last"
        )
        one = (1,) * self.rank
        shuffle = PlainConv(
            "shuffle", ops.reshape(shuffle, one + shuffle.shape)
        )
        return [[[fine, shuffle]], dense]

    def plain_bias(self):
        if self.use_bias:
            bias = ops.convert_to_tensor(self.bias)[None]
            return channel_shuffle(bias, self.groups, "channels_last")[0]

    def dense_kernel(self):
        """Return the kernel of the one standard convolution this layer equals.

        Returns:
            Tensor of shape `kernel_size + (m, n)`, for m input channels and n
            filters: the block-diagonal matrix of eq. 2.7 with its columns
            shuffled. The bias of the equal convolution is shuffled too.

        Raises:
            ValueError: if the layer has no weights yet.
        """
        return channel_shuffle(
            super().dense_kernel(), self.groups, "channels_last"
        )

    def folded(self, values, scale, offset):
        scale, offset = (
            vector.reshape(-1, self.groups).T.ravel()
            for vector in (scale, offset)
        )
        return super().folded(values, scale, offset)


@keras.saving.register_keras_serializable(package="keras_tlgc")
class ShuffleGroupConv1D(BaseShuffleGroupConv):
    """1D grouped convolution followed by a channel shuffle.

    This is the 1D form of `ShuffleGroupConv2D`. It also allows
    `padding="causal"`.

    It takes the arguments of `keras.layers.Conv1D`, in their order, and by name
    `lowering`: see `GroupConv2D`.

    Input shape:
        `(batch, steps, m)` or, with `data_format="channels_first"`,
        `(batch, m, steps)`.

    Output shape:
        `(batch, new_steps, filters)` or `(batch, filters, new_steps)`.

    Example:

    >>> x = np.random.rand(4, 10, 32)
    >>> y = keras_tlgc.layers.ShuffleGroupConv1D(64, 3, groups=4)(x)
    >>> y.shape
    (4, 8, 64)
    """

    rank = 1


@keras.saving.register_keras_serializable(package="keras_tlgc")
class ShuffleGroupConv2D(BaseShuffleGroupConv):
    """2D grouped convolution followed by a channel shuffle.

    This is the convolution that the paper calls Shuffle (Lee, Park, Lee,
    "Two-level Group Convolution", section 4.1.3), from ShuffleNet (Zhang, Zhou,
    Lin, Sun, 2018). It is `GroupConv2D`, with the same arguments and weights,
    followed by a shuffle of the n output channels: channel `j` of group `g`
    moves to place `j * groups + g`. So a grouped convolution after it reads
    channels of all groups. This costs no parameters but, on several devices, an
    exchange of all channels.

    The paper speaks of a random permutation; this is the fixed one of
    ShuffleNet.

    It takes the arguments of `keras.layers.Conv2D`, in their order, and by name
    `lowering`: see `GroupConv2D`.

    Input shape:
        `(batch, height, width, m)` or, with `data_format="channels_first"`,
        `(batch, m, height, width)`.

    Output shape:
        `(batch, new_height, new_width, filters)` or
        `(batch, filters, new_height, new_width)`.

    Raises:
        ValueError: as in `GroupConv2D`.

    Example:

    >>> x = np.random.rand(4, 10, 10, 128)
    >>> y = keras_tlgc.layers.ShuffleGroupConv2D(32, 3, groups=4)(x)
    >>> y.shape
    (4, 8, 8, 32)
    """

    rank = 2


@keras.saving.register_keras_serializable(package="keras_tlgc")
class ShuffleGroupConv3D(BaseShuffleGroupConv):
    """3D grouped convolution followed by a channel shuffle.

    This is the 3D form of `ShuffleGroupConv2D`.

    It takes the arguments of `keras.layers.Conv3D`, in their order, and by name
    `lowering`: see `GroupConv2D`.

    Input shape:
        `(batch, depth, height, width, m)` or, with
        `data_format="channels_first"`, `(batch, m, depth, height, width)`.

    Output shape:
        `(batch, new_depth, new_height, new_width, filters)` or
        `(batch, filters, new_depth, new_height, new_width)`.

    Example:

    >>> x = np.random.rand(4, 6, 6, 6, 32)
    >>> y = keras_tlgc.layers.ShuffleGroupConv3D(64, 3, groups=4)(x)
    >>> y.shape
    (4, 4, 4, 4, 64)
    """

    rank = 3
