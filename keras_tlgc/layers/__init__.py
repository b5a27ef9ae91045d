from keras_tlgc.layers.balanced_group_conv import (
    BalancedGroupConv1D,
    BalancedGroupConv2D,
    BalancedGroupConv3D,
)
from keras_tlgc.layers.dense import (
    GroupDense,
    LowRankDense,
    TwoLevelGroupDense,
)
from keras_tlgc.layers.depthwise_conv import DepthwiseConv2D
from keras_tlgc.layers.group_conv import (
    GroupConv1D,
    GroupConv2D,
    GroupConv3D,
)
from keras_tlgc.layers.learnable_group_conv import LearnableGroupConv2D
from keras_tlgc.layers.low_rank_conv import (
    LowRankConv1D,
    LowRankConv2D,
    LowRankConv3D,
)
from keras_tlgc.layers.ragged_group_conv import RaggedGroupConv2D
from keras_tlgc.layers.shuffle_group_conv import (
    ShuffleGroupConv1D,
    ShuffleGroupConv2D,
    ShuffleGroupConv3D,
)
from keras_tlgc.layers.two_level_group_conv import (
    TwoLevelGroupConv1D,
    TwoLevelGroupConv2D,
    TwoLevelGroupConv3D,
)

__all__ = [
    "BalancedGroupConv1D",
    "BalancedGroupConv2D",
    "BalancedGroupConv3D",
    "DepthwiseConv2D",
    "GroupConv1D",
    "GroupConv2D",
    "GroupConv3D",
    "GroupDense",
    "LearnableGroupConv2D",
    "LowRankConv1D",
    "LowRankConv2D",
    "LowRankConv3D",
    "LowRankDense",
    "RaggedGroupConv2D",
    "ShuffleGroupConv1D",
    "ShuffleGroupConv2D",
    "ShuffleGroupConv3D",
    "TwoLevelGroupConv1D",
    "TwoLevelGroupConv2D",
    "TwoLevelGroupConv3D",
    "TwoLevelGroupDense",
]
