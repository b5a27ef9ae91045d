import keras
from keras import ops

from keras_tlgc.types import Tensor
from keras_tlgc.validation import divisible_by_groups, one_of, positive_int


def channel_shuffle(
    inputs: Tensor, groups: int, data_format: str | None = None
) -> Tensor:
    """Deal the channels of every group out to all groups.

    This is the channel shuffle of ShuffleNet (Zhang, Zhou, Lin, Sun, 2018).
    Channel j of group g moves to place `j * groups + g`, so that neighbours
    come from different groups.

    Args:
        inputs: tensor of shape `(batch, *spatial, channels)` (channels_last)
            or `(batch, channels, *spatial)` (channels_first).
        groups: integer N, the number of groups the channels came from.
        data_format: `"channels_last"`, `"channels_first"`, or `None` for
            `keras.config.image_data_format()`.

    Returns:
        Tensor of the shape of `inputs`.

    Raises:
        ValueError: if `groups` does not divide the channels, or an argument is
            out of its range.

    Example:

    >>> x = keras.ops.arange(4)[None]
    >>> y = keras_tlgc.ops.channel_shuffle(x, 2, "channels_last")
    >>> keras.ops.convert_to_numpy(y).tolist()
    [[0, 2, 1, 3]]
    """
    data_format = one_of(
        "data_format",
        data_format or keras.config.image_data_format(),
        ["channels_last", "channels_first"],
    )
    axis = len(inputs.shape) - 1 if data_format == "channels_last" else 1
    channels = inputs.shape[axis]
    divisible_by_groups(
        "input channels", channels, positive_int("groups", groups)
    )
    before, after = ops.shape(inputs)[:axis], ops.shape(inputs)[axis + 1 :]
    x = ops.reshape(inputs, (*before, groups, channels // groups, *after))
    x = ops.swapaxes(x, axis, axis + 1)
    return ops.reshape(x, (*before, channels, *after))
