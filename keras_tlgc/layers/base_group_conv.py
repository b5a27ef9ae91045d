import functools

import keras
from keras import ops

from keras_tlgc.ops.geometry import output_size
from keras_tlgc.ops.grouped_conv import (
    block_diagonal,
    check_lowering,
    grouped_convs,
)
from keras_tlgc.ops.per_shard import check_fits_mesh, per_shard
from keras_tlgc.validation import (
    divisible_by_groups,
    one_of,
    positive_int,
    positive_ints,
)


class BaseGroupConv(keras.layers.Layer):
    """Grouped convolution of any rank: the base of all layers here.

    It takes the arguments of `keras.layers.Conv{1,2,3}D`, in their order, and
    holds the kernel of `keras.layers.Conv{1,2,3}D(groups=N)`, whose weights
    load directly. A subclass adds to `convolve_groups`, `build`, `dense_kernel`
    and `get_config` what it adds to the convolution; one whose groups may
    differ in size sets `equal_groups` and replaces `build_kernel` and
    `convolve`. The variables carry names that no Keras layer uses, so that a
    layout map finds them under any layer name.

    Args:
        (as `keras.layers.Conv{1,2,3}D`, in its order, then): see
            `GroupConv2D`.
    """

    rank: int
    equal_groups = True

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
        lowering="auto",
        **kwargs,
    ):
        super().__init__(activity_regularizer=activity_regularizer, **kwargs)
        self.filters = positive_int("filters", filters)
        self.kernel_size = positive_ints("kernel_size", kernel_size, self.rank)
        self.strides = positive_ints("strides", strides, self.rank)
        self.padding = self._check_padding(padding)
        self.data_format = one_of(
            "data_format",
            data_format or keras.config.image_data_format(),
            ["channels_last", "channels_first"],
        )
        self.dilation_rate = positive_ints(
            "dilation_rate", dilation_rate, self.rank
        )
        self.groups = positive_int("groups", groups)
        self.activation = keras.activations.get(activation)
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.bias_constraint = keras.constraints.get(bias_constraint)
        self.lowering = lowering
        check_lowering(lowering, self.kernel_size)
        self._check_divisible("filters", self.filters)
        if max(self.strides) > 1 and max(self.dilation_rate) > 1:
            raise ValueError(
                "`strides` above 1 cannot be combined with `dilation_rate` "
                f"above 1. Received: strides={self.strides}, "
                f"dilation_rate={self.dilation_rate}. Set one of them to 1."
            )

    @property
    def channel_axis(self):
        return -1 if self.data_format == "channels_last" else 1

    @property
    def spatial_axes(self):
        first = 1 if self.data_format == "channels_last" else 2
        return range(first, first + self.rank)

    def build(self, input_shape):
        self.compute_output_shape(input_shape)  # Checks, before any weight.
        channels = input_shape[self.channel_axis]
        self.input_spec = keras.InputSpec(
            ndim=self.rank + 2, axes={self.channel_axis: channels}
        )
        self.build_kernel(channels)
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                name="group_bias",
                shape=(self.filters,),
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )

    def build_kernel(self, channels):
        """Create what `convolve` needs, for an input of so many channels."""
        name = kernel_name("group_kernel", self.rank)
        check_fits_mesh(f"{self.path}/{name}", "groups", self.groups)
        self.kernel = self.add_kernel(
            name, channels // self.groups, self.filters
        )

    def add_kernel(self, name, channels, filters):
        """Create a kernel of this layer's window, initializer and so on."""
        return self.add_weight(
            name=name,
            shape=(*self.kernel_size, channels, filters),
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
        )

    def call(self, inputs):
        padding = self.padding
        if padding == "causal":
            past = self.dilation_rate[0] * (self.kernel_size[0] - 1)
            inputs = self._pad(inputs, [(past, 0)])
            padding = "valid"
        outputs = self.convolve(inputs, padding)
        if self.use_bias:
            shape = [1] * (self.rank + 2)
            shape[self.channel_axis] = self.filters
            outputs = outputs + ops.reshape(self.bias, shape)
        return self.activation(outputs)

    def convolve(self, inputs, padding):
        """Return the layer's output before bias and activation."""
        return per_shard(
            functools.partial(self.convolve_groups, padding=padding),
            inputs,
            self.sharded_kernels,
            self.groups,
            self.channel_axis,
        )

    @property
    def sharded_kernels(self):
        """The kernels of `convolve_groups`: groups along their last axes."""
        return [self.kernel]

    def convolve_groups(self, inputs, kernels, groups, gather, padding):
        """Convolve some or all groups. See `keras_tlgc.ops.per_shard`."""
        del gather  # Groups of one level do not talk.
        return self.grouped_convs(inputs, kernels, groups, padding)[0]

    def grouped_convs(self, inputs, kernels, groups, padding):
        """Convolve groups of `inputs` with this layer's window settings."""
        return grouped_convs(
            inputs,
            kernels,
            groups,
            lowering=self.lowering,
            **self._window(padding),
        )

    def dense_conv(self, inputs, kernel, padding):
        """Convolve all of `inputs` with this layer's window settings."""
        return ops.conv(inputs, kernel, **self._window(padding))

    def dense_kernel(self):
        """Return the kernel of the one standard convolution this layer equals.

        Returns:
            Tensor of shape `kernel_size + (m, n)`, for m input channels and n
            filters: the block-diagonal matrix of eq. 2.7.

        Raises:
            ValueError: if the layer has no weights yet.
        """
        self.check_built("dense_kernel")
        return block_diagonal(ops.convert_to_tensor(self.kernel), self.groups)

    def check_built(self, method):
        """Raise a `ValueError` unless the layer has weights."""
        if not self.built:
            raise ValueError(
                f"`{method}` needs a layer that has weights. "
                f"Received: the layer '{self.name}', not built yet. "
                "Call it on data first, or call `build(input_shape)`."
            )

    def compute_output_shape(self, input_shape):
        self._check_input_shape(input_shape)
        shape = list(input_shape)
        shape[self.channel_axis] = self.filters
        for i, axis in enumerate(self.spatial_axes):
            shape[axis] = output_size(
                shape[axis],
                self.kernel_size[i],
                self.strides[i],
                self.dilation_rate[i],
                self.padding,
            )
        sizes = [shape[axis] for axis in self.spatial_axes]
        if any(size is not None and size < 1 for size in sizes):
            raise ValueError(
                "The window must fit into the input. Received: "
                f"input_shape={tuple(input_shape)}, "
                f"kernel_size={self.kernel_size}, "
                f"dilation_rate={self.dilation_rate}, "
                f"padding={self.padding!r}, which leaves {tuple(shape)}. "
                "Use a smaller window, a larger input or padding='same'."
            )
        return tuple(shape)

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "padding": self.padding,
            "data_format": self.data_format,
            "dilation_rate": self.dilation_rate,
            "groups": self.groups,
            "activation": keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
            **serialize(
                self,
                "kernel_initializer",
                "bias_initializer",
                "kernel_regularizer",
                "bias_regularizer",
                "activity_regularizer",
                "kernel_constraint",
                "bias_constraint",
            ),
            "lowering": self.lowering,
        }

    def _window(self, padding):
        return {
            "strides": self.strides,
            "padding": padding,
            "data_format": self.data_format,
            "dilation_rate": self.dilation_rate,
        }

    def _pad(self, inputs, spatial_pads):
        pads = [(0, 0)] * (self.rank + 2)
        pads[self.spatial_axes[0] : self.spatial_axes[-1] + 1] = spatial_pads
        return ops.pad(inputs, pads)

    def _check_padding(self, padding):
        allowed = ["valid", "same"] + ["causal"] * (self.rank == 1)
        name = padding.lower() if isinstance(padding, str) else padding
        return one_of("padding", name, allowed)

    def _check_input_shape(self, input_shape):
        expected = {
            "channels_last": "(batch, *spatial, channels)",
            "channels_first": "(batch, channels, *spatial)",
        }[self.data_format]
        if len(input_shape) != self.rank + 2:
            raise ValueError(
                f"The input must have {self.rank + 2} dimensions, {expected}. "
                f"Received: input_shape={tuple(input_shape)}. "
                f"Reshape it, or use the {len(input_shape) - 2}D layer."
            )
        channels = input_shape[self.channel_axis]
        if channels is None:
            raise ValueError(
                "The number of input channels must be known. Received: "
                f"input_shape={tuple(input_shape)}, {expected}. "
                "Give the input a fixed channel dimension."
            )
        self._check_divisible("input channels", channels)

    def _check_divisible(self, name, channels):
        if self.equal_groups:
            divisible_by_groups(name, channels, self.groups)


def kernel_name(name, rank):
    """Return `name`, marked with a rank that is not 2.

    Rules of a layout map see the name alone, and need the kernel's rank.
    """
    return name if rank == 2 else f"{name}_{rank}d"


def serialize(layer, *names):
    """Return the named initializers, regularizers... as config entries."""
    return {
        name: keras.saving.serialize_keras_object(getattr(layer, name))
        for name in names
    }
