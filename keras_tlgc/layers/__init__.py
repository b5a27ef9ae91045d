from keras_tlgc.layers.group_conv import (
    GroupConv1D,
    GroupConv2D,
    GroupConv3D,
)
from keras_tlgc.layers.two_level_group_conv import (
    TwoLevelGroupConv1D,
    TwoLevelGroupConv2D,
    TwoLevelGroupConv3D,
)

__all__ = [
    "GroupConv1D",
    "GroupConv2D",
    "GroupConv3D",
    "TwoLevelGroupConv1D",
    "TwoLevelGroupConv2D",
    "TwoLevelGroupConv3D",
]
