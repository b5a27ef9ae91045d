"""What costs, audit, folding, conversion and benchmark ask of a layer.

A layer of this package answers for itself. The classes at the end of this file
answer for the layers of Keras. `about` finds the right one.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import keras
from keras import layers

from keras_tlgc.layers.depthwise_conv import DepthwiseConv2D
from keras_tlgc.layers.plain import Form
from keras_tlgc.variables import kernel_size, role_of


class Exchange(NamedTuple):
    """A collective that a call of a layer needs on the mesh's model axis.

    Attributes:
        kind: string, such as `"all-gather"`.
        entries: int, how many entries its result has on one device.
        purpose: string, what it is for, such as `"coarse"`.
        times: int, how often it is done in a train step, at most.
        hidden_by: int, how many of the call's multiply-adds on one device
            neither wait for it nor are waited for.
    """

    kind: str
    entries: int
    purpose: str
    times: int = 1
    hidden_by: int = 0


class Answers:
    """The answers for a layer about which nothing is known.

    Attributes:
        exchanged: string, what XLA exchanges for it along the model axis, as it
            sees fit, if its inputs are split: "concatenation".
        foldable: bool, whether the weights that `folded` returns scale and
            shift the outputs.
        gathered_channels: int, how many channels, of all groups together, each
            device needs at each position of the outputs: those of a coarse
            level.
        groups: int, the number N of groups.
        shared_window: tuple, the size of the kernel's window, if several groups
            may share a dense convolution, or `None`. Devices then add up the
            gradient of a kernel with zeros between the groups.
    """

    exchanged = ""
    foldable = False
    gathered_channels = 0
    groups = 1
    shared_window: tuple[int, ...] | None = None

    def multiply_adds(self) -> int | None:
        """Count the multiplications at each position, by the kept weights."""
        return None

    def dropped_params(self) -> int:
        """Count the trainable parameters that inference does without."""
        return 0

    def exchanges(
        self, split: int, input_shape, output_shape, devices: int
    ) -> Iterable[Exchange]:
        """Return what a train step exchanges for one call of the layer.

        Args:
            split: int, the axis of the kernel that is split: -1 or -2.
            input_shape, output_shape: tuples, the shapes of the rows of a batch
                that one device computes, with the channels of all groups.
            devices: int, the number of devices that the axis is split over.
        """
        return ()

    def plain_forms(self, sizes) -> list[Form]:
        """Return the ways to write the layer as plain convolutions.

        Each of them gives the layer's output before bias and activation. A
        layer without any is not known to be a sum of convolutions.

        Args:
            sizes: tuple, the sizes of the input along each spatial axis, `None`
                where they are unknown.
        """
        return []

    def folded(self, values: dict, scale, offset) -> dict:
        """Return weights whose outputs are `scale * outputs + offset`.

        Args:
            values: dict of arrays, the weights by name.
            scale, offset: arrays of shape `(filters,)`.
        """
        new = {}
        for name, value in values.items():
            role = role_of(name)
            if role.scales_outputs or role.is_bias:
                value = value * scale + (offset if role.is_bias else 0.0)
            new[name] = value
        return new


def about(layer) -> Answers:
    """Return what answers for a layer: the layer itself, or an `OfKeras`."""
    if isinstance(layer, Answers):
        return layer
    for classes, answers in KERAS.items():
        if isinstance(layer, classes):
            return answers(layer)
    return OfKeras(layer)


def is_convolution(layer: keras.layers.Layer) -> bool:
    """Return whether a layer is a convolution of any kind."""
    return isinstance(about(layer), OfKernels) or isinstance(layer, Answers)


def is_unknown(layer: keras.layers.Layer) -> bool:
    """Return whether nothing is known about what a layer computes.

    It is one of somebody else, or one of Keras with kernels that are not
    counted, such as attention. A model is what its layers are.
    """
    if isinstance(layer, (Answers, keras.Model)):
        return False
    is_of_keras = getattr(layers, type(layer).__name__, None) is type(layer)
    is_known = is_of_keras or type(layer) is DepthwiseConv2D
    return not is_known or about(layer).multiply_adds() is None


def positions(layer, input_shape, output_shape) -> int:
    """Count the positions at which one call of a layer applies its kernels."""
    shape = input_shape if isinstance(layer, TRANSPOSED) else output_shape
    first = getattr(layer, "data_format", None) == "channels_first"
    return math.prod(shape) // shape[-layer.rank - 1 if first else -1]


class OfKeras(Answers):
    """Answers for a layer of Keras or of a user."""

    counts = False  # Whether its kernels are applied at each position.

    def __init__(self, layer):
        self.layer = layer

    def multiply_adds(self):
        entries = kernel_size(self.layer)
        return entries if self.counts or entries == 0 else None


class OfDense(OfKeras):
    """Answers for `keras.layers.Dense`."""

    counts = True

    def exchanges(self, split, input_shape, output_shape, devices):
        if split == -2:
            yield Exchange("all-reduce", math.prod(output_shape), "outputs")
        elif split == -1:
            yield from _of_filters(input_shape, devices)


class OfKernels(OfKeras):
    """Answers for a convolution of Keras."""

    counts = True


class OfConv(OfKernels):
    """Answers for `keras.layers.Conv{1,2,3}D`."""

    def __init__(self, layer):
        super().__init__(layer)
        self.groups = layer.groups
        self.foldable = type(layer) in CONVOLUTIONS  # A subclass may do more.

    def exchanges(self, split, input_shape, output_shape, devices):
        # A grouped convolution needs only the channels of its own groups.
        if split == -1 and self.groups == 1:
            yield from _of_filters(input_shape, devices)
        elif split == -2 and self.groups == 1:
            yield Exchange("all-reduce", math.prod(output_shape), "outputs")


class OfTransposed(OfKernels):
    """Answers for `keras.layers.Conv{1,2,3}DTranspose`."""

    def exchanges(self, split, input_shape, output_shape, devices):
        if split == -2:
            yield from _of_filters(input_shape, devices)
            # For the gradient of the kernel.
            yield Exchange("all-gather", math.prod(output_shape), "gradient")
            part = kernel_size(self.layer) // devices**2
            yield Exchange("all-to-all", part, "gradient", times=devices)


class OfDepthwise(OfKernels):
    """Answers for `keras.layers.DepthwiseConv{1,2}D`."""

    def __init__(self, layer):
        super().__init__(layer)
        self.foldable = type(layer) in FOLDABLE_DEPTHWISE

    def folded(self, values, scale, offset):
        # The last two axes are the channels and the filters of each channel.
        kernel = values["kernel"]
        wide = scale.reshape(kernel.shape[-2:])
        new = super().folded({**values, "kernel": 0.0}, scale, offset)
        return {**new, "kernel": kernel * wide}


def _of_filters(input_shape, devices):
    """Yield what a layer exchanges whose filters all need all inputs."""
    entries = math.prod(input_shape)
    # XLA gathers an input once more for the kernel's gradient.
    yield Exchange("all-gather", entries, "input", times=2)
    yield Exchange("all-reduce", entries, "input")
    yield Exchange("reduce-scatter", entries // devices, "input")


class OfConcatenate(OfKeras):
    """Answers for `keras.layers.Concatenate`."""

    exchanged = "concatenation"


class OfReshape(OfKeras):
    """Answers for layers that mix channels and positions."""

    exchanged = "reshape"


class OfStatistics(OfKeras):
    """Answers for normalisations over channels."""

    exchanged = "statistic"


CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
FOLDABLE_DEPTHWISE = (
    *DEPTHWISE,
    DepthwiseConv2D,
)  # Another subclass may do more.
TRANSPOSED = (
    layers.Conv1DTranspose,
    layers.Conv2DTranspose,
    layers.Conv3DTranspose,
)
SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)
KERAS: dict[tuple[type, ...], type[OfKeras]] = {
    CONVOLUTIONS: OfConv,
    DEPTHWISE: OfDepthwise,
    TRANSPOSED: OfTransposed,
    SEPARABLE: OfKernels,
    (layers.Dense,): OfDense,
    (layers.Concatenate,): OfConcatenate,
    (layers.Flatten, layers.Reshape, layers.Permute): OfReshape,
    (layers.LayerNormalization, layers.GroupNormalization): OfStatistics,
}
