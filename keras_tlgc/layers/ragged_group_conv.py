import inspect
import operator

import keras
import numpy as np
from keras import ops

from keras_tlgc.layers.base_group_conv import BaseGroupConv
from keras_tlgc.layers.plain import PlainConv, plain_conv
from keras_tlgc.ops.grouped_conv import grouped_conv


@keras.saving.register_keras_serializable(package="keras_tlgc")
class RaggedGroupConv2D(BaseGroupConv):
    """2D grouped convolution whose groups are any sets of channels.

    This is what `LearnableGroupConv2D.to_group_conv()` returns. Group g reads
    the channels `input_groups[g]` and computes the filters `output_groups[g]`.
    Channels are gathered by group, each group is convolved with a kernel of its
    own, and the filters are put back in their order. The filters of a group
    without channels return only their bias; a group without filters reads
    nothing.

    It takes the arguments of `keras.layers.Conv2D`, in their order but without
    `groups` (see `GroupConv2D`), and by name:

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
    not_arguments = ("groups", "lowering")  # There is only one lowering.
    foldable = True

    def __init__(self, *args, input_groups=(), output_groups=(), **kwargs):
        # The base gets these by name, since `groups` is not among them.
        signature = inspect.signature(RaggedGroupConv2D)
        given = signature.bind(*args, **kwargs).arguments
        kwargs = given.pop("kwargs", {})
        count = len(output_groups) or 1
        super().__init__(groups=count, lowering="auto", **given, **kwargs)
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

    @property
    def adapted_kernels(self):
        return [(kernel, 1) for kernel in self.kernels]

    def _live_groups(self):
        groups = zip(self.input_groups, self.output_groups, strict=True)
        return [(i, o) for i, o in groups if i and o]

    def convolve(self, inputs, padding):
        axis = self.channel_axis % len(inputs.shape)
        window = self.window(padding)
        outputs, order = [], []
        for kernel, (members, filters) in zip(
            self.kernels, self._live_groups(), strict=True
        ):
            x = ops.take(inputs, np.array(members), axis=axis)
            kernel = ops.convert_to_tensor(self.merged(kernel))
            outputs.append(grouped_conv(x, kernel, 1, **window))
            order += filters
        # Filters without channels get zeros of the shape of the outputs.
        if idle := sorted(set(range(self.filters)) - set(order)):
            x = ops.take(inputs, np.array([0]), axis=axis)
            zeros = ops.zeros(
                (*self.kernel_size, 1, len(idle)), dtype=self.compute_dtype
            )
            outputs.append(grouped_conv(x, zeros, 1, **window))
            order += idle
        x = ops.concatenate(outputs, axis=axis)
        return ops.take(x, np.argsort(order), axis=axis)

    def folded(self, values, scale, offset):
        new = super().folded(values, scale, offset)
        for kernel, (_, filters) in zip(
            self.kernels, self._live_groups(), strict=True
        ):
            new[kernel.name] = values[kernel.name] * scale[filters]
        return new

    def plain_forms(self, sizes):
        dense = [[plain_conv(self, "dense", self.dense_kernel(), sizes)]]
        groups = self._live_groups()
        if not groups:
            return [dense]
        members, filters = zip(*groups, strict=True)
        # Groups of one size: smaller ones read and compute some zeros.
        most, n = (max(map(len, some)) for some in (members, filters))
        kernels = [
            np.pad(
                ops.convert_to_numpy(self.merged(kernel)),
                [
                    *[(0, 0)] * self.rank,
                    (0, most - kernel.shape[-2]),
                    (0, n - kernel.shape[-1]),
                ],
            )
            for kernel in self.kernels
        ]
        kernel = np.concatenate(kernels, axis=-1)
        fine = plain_conv(self, "fine", kernel, sizes, len(groups))
        channels = sum(map(len, self.input_groups))
        gather = _placed(members, most, channels)
        scatter = _placed(filters, n, self.filters)
        return [
            [
                [
                    PlainConv("gather", gather),
                    fine,
                    PlainConv("scatter", np.swapaxes(scatter, -1, -2)),
                ]
            ],
            dense,
        ]

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
                ops.convert_to_tensor(self.merged(kernel)),
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


def _placed(groups, size, channels):
    """Return the 1x1 kernel that puts channels in order, by groups of a size.

    Its shape is `(1, 1, channels, len(groups) * size)`. Places that no channel
    of a group fills get zeros.
    """
    kernel = np.zeros((1, 1, channels, len(groups), size), "float32")
    for i, members in enumerate(groups):
        kernel[0, 0, members, i, range(len(members))] = 1
    return kernel.reshape(1, 1, channels, -1)


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
