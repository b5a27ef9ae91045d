import operator

import keras
import numpy as np
from keras import ops

from keras_tlgc.layers.base_group_conv import BaseGroupConv


@keras.saving.register_keras_serializable(package="keras_tlgc")
class RaggedGroupConv2D(BaseGroupConv):
    """2D grouped convolution whose groups are any sets of channels.

    What `LearnableGroupConv2D.to_group_conv()` returns: group g reads the
    channels `input_groups[g]` and computes the filters `output_groups[g]`.
    Channels are gathered by group, each group is convolved with a kernel of
    its own, and the filters are put back in their order. A group without
    channels gives its filters their bias alone; one without filters reads
    nothing.

    Takes the arguments of `keras.layers.Conv2D`, in its order but without
    `groups` (see `GroupConv2D`), then:

    Args:
        input_groups: list of lists of integers: the input channels of each
            group. Each channel belongs to exactly one group.
        output_groups: list of lists of integers: the filters of each group.
            Each filter belongs to exactly one group.

    Input shape:
        `(batch, height, width, m)` or, with `data_format="channels_first"`,
        `(batch, m, height, width)`.

    Output shape:
        `(batch, new_height, new_width, filters)` or
        `(batch, filters, new_height, new_width)`.

    Raises:
        ValueError: if the groups do not hold each channel and each filter
            once, or an argument is out of its range.

    Example:

    >>> x = np.random.rand(4, 10, 10, 5)
    >>> layer = keras_tlgc.layers.RaggedGroupConv2D(
    ...     4,
    ...     3,
    ...     input_groups=[[0, 2, 4], [1, 3]],
    ...     output_groups=[[3], [0, 1, 2]]
    ... )
    >>> layer(x).shape
    (4, 8, 8, 4)
    >>> [w.shape for w in layer.weights]
    [(3, 3, 3, 1), (3, 3, 2, 3), (4,)]
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
        activation=None,
        use_bias=True,
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        activity_regularizer=None,
        kernel_constraint=None,
        bias_constraint=None,
        input_groups=(),
        output_groups=(),
        **kwargs,
    ):
        super().__init__(
            filters,
            kernel_size,
            strides=strides,
            padding=padding,
            data_format=data_format,
            dilation_rate=dilation_rate,
            groups=len(output_groups) or 1,
            activation=activation,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
            kernel_constraint=kernel_constraint,
            bias_constraint=bias_constraint,
            lowering="auto",  # Not an argument: there is one way.
            **kwargs,
        )
        self.input_groups = _int_lists("input_groups", input_groups)
        self.output_groups = _int_lists("output_groups", output_groups)
        if len(self.input_groups) != len(self.output_groups):
            raise ValueError(
                "`input_groups` and `output_groups` must be of one length. "
                f"Received: {len(self.input_groups)} groups of inputs, "
                f"{len(self.output_groups)} of filters. "
                "Use an empty list for a group without members."
            )
        _check_partition("output_groups", self.output_groups, self.filters)

    def compute_output_shape(self, input_shape):
        shape = super().compute_output_shape(input_shape)
        channels = input_shape[self.channel_axis]
        _check_partition("input_groups", self.input_groups, channels)
        return shape

    def build_kernel(self, channels):
        self.kernels = [
            self.add_kernel(f"group_kernel{i}", len(members), len(filters))
            for i, (members, filters) in enumerate(self._live_groups())
        ]

    def _live_groups(self):
        groups = zip(self.input_groups, self.output_groups, strict=True)
        return [(i, o) for i, o in groups if i and o]

    def convolve(self, inputs, padding):
        axis = self.channel_axis % len(inputs.shape)
        outputs, order = [], []
        for kernel, (members, filters) in zip(
            self.kernels, self._live_groups(), strict=True
        ):
            x = ops.take(inputs, np.array(members), axis=axis)
            kernel = ops.convert_to_tensor(kernel)
            outputs.append(self.dense_conv(x, kernel, padding))
            order += filters
        # Filters without channels: zeros of the outputs' shape.
        if idle := sorted(set(range(self.filters)) - set(order)):
            x = ops.take(inputs, np.array([0]), axis=axis)
            zeros = ops.zeros(
                (*self.kernel_size, 1, len(idle)), dtype=self.compute_dtype
            )
            outputs.append(self.dense_conv(x, zeros, padding))
            order += idle
        x = ops.concatenate(outputs, axis=axis)
        return ops.take(x, np.argsort(order), axis=axis)

    def dense_kernel(self):
        """Return the kernel of the one standard convolution this layer equals.

        Returns:
            Tensor of shape `kernel_size + (m, n)`, for m input channels and n
            filters, zero between channels and filters of different groups.

        Raises:
            ValueError: if the layer has no weights yet.
        """
        self.check_built("dense_kernel")
        channels = sum(map(len, self.input_groups))
        dtype = self.variable_dtype
        rows, columns = (
            ops.eye(channels, dtype=dtype),
            ops.eye(self.filters, dtype=dtype),
        )
        dense = ops.zeros(
            (*self.kernel_size, channels, self.filters), dtype=dtype
        )
        for kernel, (members, filters) in zip(
            self.kernels, self._live_groups(), strict=True
        ):
            dense = dense + ops.einsum(
                "xymn,cm,nf->xycf",
                ops.convert_to_tensor(kernel),
                ops.take(rows, np.array(members), axis=1),
                ops.take(columns, np.array(filters), axis=0),
            )
        return dense

    def get_config(self):
        config = super().get_config()
        del config["groups"], config["lowering"]
        return {
            **config,
            "input_groups": self.input_groups,
            "output_groups": self.output_groups,
        }


def _int_lists(name, groups):
    try:
        return [[operator.index(i) for i in members] for members in groups]
    except TypeError as error:
        raise ValueError(
            f"`{name}` must be lists of integers, one for each group. "
            f"Received: {name}={groups!r}. Write them as in [[0, 2], [1]]."
        ) from error


def _check_partition(name, groups, channels):
    members = sorted(i for group in groups for i in group)
    if members != list(range(channels)):
        raise ValueError(
            f"`{name}` must hold each of 0, ..., {channels - 1} exactly once. "
            f"Received: {name}={groups}. Put every channel into one group."
        )
