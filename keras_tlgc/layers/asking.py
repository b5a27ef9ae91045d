"""What a layer asks of the file of tuned lowerings."""

from typing import Any

from keras_tlgc.ops import tuned
from keras_tlgc.sharding.per_shard import active_distribution, local_batch
from keras_tlgc.types import Tensor


def tuned_lowering(layer: Any, inputs: Tensor, padding: str) -> str | None:
    """Return how a layer is computed on these inputs, if a file says so.

    Args:
        layer: a `BaseGroupConv`, built.
        inputs: tensor, padded already if the padding is causal.
        padding: `"valid"` or `"same"`.

    Returns:
        A lowering, or `None` for that of the layer.
    """
    if layer.lowering != "auto" or not layer.rank or not tuned.is_asked():
        return None
    batch, *size = inputs.shape
    channels = size.pop(layer.channel_axis % len(inputs.shape) - 1)
    # Sizes that are unknown, or those of a trace for another format, are not
    # compared with any that were measured.
    if not all(isinstance(one, int) for one in (*size, channels)):
        return None
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
    is_none = lowering == "auto" or (lowering == "dense" and on_mesh)
    return None if is_none else lowering
