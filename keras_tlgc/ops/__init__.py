from keras_tlgc.ops.grouped_conv import (
    LOWERINGS,
    block_diagonal,
    choose_lowering,
    grouped_conv,
)

__all__ = ["LOWERINGS", "block_diagonal", "choose_lowering", "grouped_conv"]
