import functools
import inspect

import keras
from keras import ops

from keras_tlgc.layers.answers import Answers, Exchange, positions
from keras_tlgc.layers.asking import tuned_lowering
from keras_tlgc.layers.lora import LoraKernels, check_lora
from keras_tlgc.layers.plain import plain_conv
from keras_tlgc.ops.geometry import (
    convolved_shape,
    is_traced,
    pad_spatial,
    same_pads,
)
from keras_tlgc.ops.grouped_conv import one_level_conv
from keras_tlgc.ops.lora import with_products
from keras_tlgc.ops.lowerings import block_diagonal, check_lowering
from keras_tlgc.sharding.per_shard import check_fits_mesh, per_shard
from keras_tlgc.validation import (
    divisible_by_groups,
    one_of,
    positive_int,
    positive_ints,
)
from keras_tlgc.variables import kernel_size, with_rank


class BaseGroupConv(Answers, LoraKernels, keras.layers.Layer):
    """Grouped convolution of any rank: the base of all layers here.

    It takes the arguments of `keras.layers.Conv{1,2,3}D`, in their order, then
    those of `GroupConv2D`. It holds a kernel of the same shape as
    `keras.layers.Conv{1,2,3}D(groups=N)`, so that it can take that layer's
    weights. A subclass that adds something to the convolution replaces some of
    `group_op`, `build_coarse_level`, `sharded_kernels`, `dense_kernel`,
    `get_config` and the methods of `Answers`. A subclass whose groups may
    differ in size sets `equal_groups` to `False` and replaces `build_kernel`,
    `adapted_kernels` and `convolve`. One whose filters are in no groups
    replaces `check_filters`. The name of each variable has a row in
    `keras_tlgc.variables.ROLES`.
    """

    rank: int  # Of the window: 0 for a layer without one, such as `Dense`.
    filters_name = "filters"  # What that argument is called.
    equal_groups = True
    # A subclass that defines `call` is foldable only if it says so itself. One
    # that computes something else has plain forms only if it defines them.
    foldable = True
    # The arguments of its base class that a subclass does not take.
    not_arguments: tuple[str, ...] = ()

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "call" in vars(cls):
            cls.foldable = vars(cls).get("foldable", False)
        if {"call", "convolve", "group_op"} & {*vars(cls)} and (
            "plain_forms" not in vars(cls)
        ):
            cls.plain_forms = Answers.plain_forms
        if "__init__" in vars(cls):
            _show_whole_signature(cls)

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
        *,
        lowering="auto",
        lora_rank=None,
        lora_alpha=None,
        **kwargs,
    ):
        super().__init__(activity_regularizer=activity_regularizer, **kwargs)
        self.filters = positive_int(self.filters_name, filters)
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
        self.check_filters()
        if max((1, *self.strides)) > 1 and max((1, *self.dilation_rate)) > 1:
            raise ValueError(
                "`strides` above 1 cannot be combined with `dilation_rate` "
                f"above 1. Received: strides={self.strides}, "
                f"dilation_rate={self.dilation_rate}. Set one of them to 1."
            )
        self.lora_enabled, self.lora_kernels = False, []
        self.lora_rank, self.lora_alpha = lora_rank, lora_alpha
        if lora_rank is not None:
            self.lora_rank, self.lora_alpha = check_lora(lora_rank, lora_alpha)

    @property
    def shared_window(self):
        return self.kernel_size

    def multiply_adds(self):
        return kernel_size(self)

    def exchanges(self, split, input_shape, output_shape, devices):
        at = positions(self, input_shape, output_shape)
        if split == -1 and self.gathered_channels:
            entries = at * self.gathered_channels
            # Once R has run, G can while the others' channels arrive.
            fine = at * kernel_size(self, coarse=False) // devices
            yield Exchange("all-gather", entries, "coarse", hidden_by=fine)
            yield Exchange("reduce-scatter", entries // devices, "coarse")

    @property
    def channel_axis(self):
        return -1 if self.data_format == "channels_last" else 1

    def build(self, input_shape):
        # Check the shape before any weight is created.
        self.compute_output_shape(input_shape)
        if self.lora_rank is not None:
            self.check_unconstrained()
        channels = input_shape[self.channel_axis]
        self.input_spec = keras.InputSpec(
            ndim=self.rank + 2, axes={self.channel_axis: channels}
        )
        self.build_kernel(channels)
        self.bias = None
        if self.use_bias:
            self.bias = self.add_one("group_bias", (self.filters,), "bias")
        self.build_coarse_level(channels)
        self.built = True
        if self.lora_rank is not None:
            self.enable_lora(self.lora_rank, self.lora_alpha)

    def build_kernel(self, channels):
        """Create the weights of `convolve` for so many input channels."""
        name = with_rank("group_kernel", self.rank)
        check_fits_mesh(f"{self.path}/{name}", "groups", self.groups)
        self._kernel = self.add_kernel(
            name, channels // self.groups, self.filters
        )

    def build_coarse_level(self, channels):
        """Create the weights after the bias: a one-level layer has none."""

    @property
    def kernel(self):
        """The kernel's variable or, once LoRA is enabled, the merged tensor."""
        return self.merged(self._kernel)

    def add_kernel(self, name, channels, filters):
        """Create a kernel with this layer's window."""
        shape = (*self.kernel_size, channels, filters)
        return self.add_one(name, shape, "kernel")

    def add_one(self, name, shape, kind):
        """Create a variable with the initializer, ... for its kind."""
        return self.add_weight(
            name=name,
            shape=shape,
            initializer=getattr(self, f"{kind}_initializer"),
            regularizer=getattr(self, f"{kind}_regularizer"),
            constraint=getattr(self, f"{kind}_constraint"),
        )

    def call(self, inputs):
        outputs = self.convolve(*self._padded(inputs))
        if self.use_bias:
            shape = [1] * (self.rank + 2)
            shape[self.channel_axis] = self.filters
            outputs = outputs + ops.reshape(self.bias, shape)
        return self.activation(outputs)

    def convolve(self, inputs, padding):
        """Return the layer's output before bias and activation."""
        convolve = self.group_op(padding)
        if "lowering" in getattr(convolve, "keywords", ()):
            lowering = tuned_lowering(self, inputs, padding)
            convolve = functools.partial(convolve, lowering=lowering)
        if self.lora_enabled:
            convolve = with_products(convolve, self.lora_scale)
        return per_shard(
            convolve,
            inputs,
            [*self.sharded_kernels, *self.lora_kernels],
            self.groups,
            self.channel_axis,
        )

    @property
    def sharded_kernels(self):
        """The kernels of `group_op`, with the groups along their last axes."""
        return [self._kernel]

    def group_op(self, padding):
        """Return the function that convolves all groups, or one device's.

        Returns:
            A function of `(inputs, kernels, groups, peers)`: see
            `keras_tlgc.sharding.per_shard`. If it is a `functools.partial`
            with `lowering`, that is replaced by what was tuned for a call.
        """
        return functools.partial(
            one_level_conv, lowering=self.lowering, **self.window(padding)
        )

    def dense_kernel(self):
        """Return the kernel of the one standard convolution this layer equals.

        Returns:
            Tensor of shape `kernel_size + (m, n)`, for m input channels and n
            filters: the block-diagonal matrix of eq. 2.7.

        Raises:
            ValueError: if the layer has no weights yet.
        """
        self.check_built("dense_kernel")
        kernel = self.merged(self._kernel)
        return block_diagonal(ops.convert_to_tensor(kernel), self.groups)

    def plain_forms(self, sizes):
        dense = plain_conv(self, "dense", self.dense_kernel(), sizes)
        fine = plain_conv(self, "fine", self.kernel, sizes, self.groups)
        return [[[fine]], [[dense]]]

    def plain_bias(self):
        """Return the bias of the plain forms, or `None`."""
        return self.bias

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
        return convolved_shape(
            input_shape,
            self.filters,
            self.kernel_size,
            **self.window(self.padding),
        )

    def get_config(self):
        lora = {"lora_rank": self.lora_rank, "lora_alpha": self.lora_alpha}
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
            **(lora if self.lora_rank is not None else {}),
        }

    def window(self, padding):
        """Return the arguments that say where windows lie, for `ops`."""
        return {
            "strides": self.strides,
            "padding": padding,
            "data_format": self.data_format,
            "dilation_rate": self.dilation_rate,
        }

    def _padded(self, inputs):
        """Return inputs and padding, padded here where `ops` cannot do it."""
        window = self.window(self.padding)
        padding = window.pop("padding")
        if padding == "causal":
            past = self.dilation_rate[0] * (self.kernel_size[0] - 1)
            pads = [(past, 0)]
        elif padding == "same" and max(self.strides) > 1 and is_traced(inputs):
            # Keras would export the padding of the traced size for every size.
            pads = same_pads(inputs, self.kernel_size, **window)
        else:
            return inputs, padding
        return pad_spatial(inputs, pads, self.data_format), "valid"

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

    def check_filters(self):
        """Raise a `ValueError` unless the groups divide the filters."""
        self._check_divisible(self.filters_name, self.filters)

    def _check_divisible(self, name, channels):
        if self.equal_groups:
            divisible_by_groups(name, channels, self.groups)


def _show_whole_signature(cls):
    """Let `help` list by name what an `__init__` takes as `*args`.

    This sets the signature of the function, not of the class: the objects would
    inherit that of the class, and TensorFlow would trace their calls by it.
    """
    own = [*inspect.signature(cls.__init__).parameters.values()]
    if [p.kind for p in own[1:2]] == [inspect.Parameter.VAR_POSITIONAL]:
        parent = next(c for c in cls.__mro__[1:] if "__init__" in vars(c))
        inherited = inspect.signature(parent.__init__).parameters.values()
        shown = {p.name: p for p in (*inherited, *own[2:])}
        for name in cls.not_arguments:
            shown.pop(name, None)
        cls.__init__.__signature__ = inspect.Signature(
            sorted(shown.values(), key=lambda p: p.kind)
        )


def serialize(layer, *names):
    """Return the named initializers, regularizers... as config entries."""
    return {
        name: keras.saving.serialize_keras_object(getattr(layer, name))
        for name in names
    }
