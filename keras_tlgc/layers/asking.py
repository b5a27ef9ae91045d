"""What a layer asks of the file of tuned lowerings."""

from typing import Any

from keras_tlgc.ops import tuned
from keras_tlgc.ops.lowerings import device_of
from keras_tlgc.sharding.per_shard import active_distribution, local_batch
from keras_tlgc.types import Tensor


def tuned_lowering(layer: Any, inputs: Tensor, padding: str) -> str:
    """Return a layer's lowering, or what a file says in place of `"auto"`.

    Args:
        layer: a `BaseGroupConv`, built.
        inputs: tensor, padded already if the padding is causal.
        padding: `"valid"` or `"same"`.
    """
    # On PyTorch, shapes are inferred on a device without a memory.
    if (
        layer.lowering != "auto"
        or not layer.rank
        or device_of(inputs) == "meta"
        or not tuned.is_asked()
    ):
        return layer.lowering
    batch, *size = inputs.shape
    channels = size.pop(layer.channel_axis % len(inputs.shape) - 1)
    # Sizes that are unknown, or those of a trace for another format, are not
    # compared with any that were measured.
    if not all(isinstance(one, int) for one in (*size, channels)):
        return "auto"
    call = tuned.Call(
        layer=type(layer).__name__,
        batch_size=local_batch(batch) if isinstance(batch, int) else None,
        size=tuple(size),
        channels=channels,
        filters=layer.filters,
        groups=layer.groups,
        coarse_channels=layer.gathered_channels,
        kernel_size=layer.kernel_size,
        coarse_kernel_size=getattr(
            layer, "coarse_kernel_size", layer.kernel_size
        ),
        strides=layer.strides,
        dilation_rate=layer.dilation_rate,
        padding=padding,
        data_format=layer.data_format,
        dtype=layer.compute_dtype,
    )
    lowering = tuned.asked(call, layer)
    on_mesh = active_distribution() is not None
    return "auto" if lowering == "dense" and on_mesh else lowering
