from keras_tlgc.ops.channel_shuffle import channel_shuffle
from keras_tlgc.ops.grouped_conv import grouped_conv, grouped_convs
from keras_tlgc.ops.lowerings import (
    LOWERINGS,
    block_diagonal,
    choose_lowering,
)
from keras_tlgc.ops.tuned import use_tuned

__all__ = [
    "LOWERINGS",
    "block_diagonal",
    "channel_shuffle",
    "choose_lowering",
    "grouped_conv",
    "grouped_convs",
    "use_tuned",
]
