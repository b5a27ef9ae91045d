"""The cases of layers: shapes of inputs, and arguments."""

import pytest
from helpers import once

# name: (input shape, channels last; arguments of the two-level layer).
CASES = {
    "1d": ((2, 9, 4), dict(kernel_size=3, groups=2)),
    "1d_causal": ((2, 7, 4), dict(kernel_size=3, padding="causal", groups=2)),
    "1d_causal_stride": (
        (2, 8, 4),
        dict(kernel_size=3, strides=2, padding="causal", groups=2),
    ),
    "1d_causal_small_coarse": (
        (2, 7, 4),
        dict(kernel_size=4, padding="causal", groups=2, coarse_kernel_size=1),
    ),
    "1d_causal_large_coarse": (
        (2, 7, 4),
        dict(
            kernel_size=2,
            padding="causal",
            dilation_rate=2,
            groups=2,
            coarse_kernel_size=4,
        ),
    ),
    "1d_causal_large_coarse_stride": (
        (2, 8, 4),
        dict(
            kernel_size=2,
            strides=3,
            padding="causal",
            groups=2,
            coarse_kernel_size=3,
        ),
    ),
    "1d_same_even": ((2, 7, 4), dict(kernel_size=4, padding="same", groups=2)),
    "2d": ((2, 5, 6, 4), dict(kernel_size=3, groups=2)),
    "2d_same": ((2, 5, 6, 4), dict(kernel_size=3, padding="same", groups=2)),
    "2d_oblong": (
        (2, 6, 5, 4),
        dict(kernel_size=(3, 2), strides=(1, 2), padding="same", groups=2),
    ),
    "2d_stride_odd": (
        (2, 7, 7, 4),
        dict(kernel_size=3, strides=2, padding="same", groups=2),
    ),
    "2d_stride_even": (
        (2, 6, 6, 4),
        dict(kernel_size=3, strides=2, padding="same", groups=2),
    ),
    "2d_stride_valid": (
        (2, 7, 6, 4),
        dict(kernel_size=2, strides=2, groups=2),
    ),
    "2d_stride_beyond_kernel": (
        (2, 8, 7, 4),
        dict(kernel_size=2, strides=3, padding="same", groups=2),
    ),
    "2d_dilation": (
        (2, 7, 6, 4),
        dict(kernel_size=3, dilation_rate=2, groups=2),
    ),
    "2d_dilation_same": (
        (2, 6, 5, 4),
        dict(kernel_size=2, dilation_rate=(2, 3), padding="same", groups=2),
    ),
    "2d_coarse_channels": (
        (2, 5, 5, 4),
        dict(kernel_size=3, padding="same", groups=2, coarse_channels=3),
    ),
    "2d_small_coarse": (
        (2, 6, 6, 4),
        dict(kernel_size=3, padding="same", groups=2, coarse_kernel_size=1),
    ),
    "2d_small_coarse_even": (
        (2, 6, 7, 4),
        dict(kernel_size=4, strides=2, groups=2, coarse_kernel_size=(1, 3)),
    ),
    "2d_large_coarse": (
        (2, 5, 6, 4),
        dict(kernel_size=3, padding="same", groups=2, coarse_kernel_size=5),
    ),
    "2d_large_coarse_even": (
        (2, 5, 6, 4),
        dict(kernel_size=3, groups=2, coarse_kernel_size=(4, 6)),
    ),
    "2d_large_coarse_stride": (
        (2, 6, 7, 4),
        dict(
            kernel_size=3,
            strides=2,
            padding="same",
            groups=2,
            coarse_kernel_size=5,
        ),
    ),
    "2d_large_coarse_dilation": (
        (2, 6, 7, 4),
        dict(
            kernel_size=2,
            dilation_rate=2,
            padding="same",
            groups=2,
            coarse_kernel_size=3,
        ),
    ),
    "2d_mixed_coarse": (
        (2, 6, 7, 4),
        dict(
            kernel_size=(3, 1),
            padding="same",
            groups=2,
            coarse_kernel_size=(1, 4),
        ),
    ),
    "2d_1x1": ((2, 5, 4, 4), dict(kernel_size=1, groups=2)),
    "2d_1x1_stride": (
        (2, 5, 6, 4),
        dict(kernel_size=1, strides=2, padding="same", groups=2),
    ),
    "2d_1x1_stride_large_coarse": (
        (2, 6, 5, 4),
        dict(
            kernel_size=1,
            strides=2,
            padding="same",
            groups=2,
            coarse_kernel_size=3,
        ),
    ),
    "2d_one_group": ((2, 5, 5, 4), dict(kernel_size=3, groups=1)),
    "2d_depthwise": (
        (2, 5, 5, 4),
        dict(kernel_size=3, padding="same", groups=4),
    ),
    "2d_slice_per_group": (
        (1, 3, 3, 48),
        dict(filters=6, kernel_size=2, groups=3, coarse_kernel_size=3),
    ),
    "2d_shared_slices": (
        (2, 3, 3, 34),
        dict(filters=34, kernel_size=2, groups=17),
    ),
    "2d_even_shared_slices": (
        (2, 3, 3, 32),
        dict(filters=64, kernel_size=1, strides=2, groups=32),
    ),
    "2d_no_bias": (
        (2, 4, 4, 4),
        dict(kernel_size=2, groups=2, use_bias=False),
    ),
    "3d": ((2, 3, 4, 3, 4), dict(kernel_size=2, groups=2)),
    "3d_same_stride": (
        (2, 3, 4, 5, 4),
        dict(kernel_size=3, strides=2, padding="same", groups=2),
    ),
    "3d_large_coarse": (
        (1, 3, 3, 3, 4),
        dict(
            kernel_size=(1, 2, 2),
            padding="same",
            groups=2,
            coarse_kernel_size=(3, 2, 1),
        ),
    ),
}
# Cases of all that lowerings treat differently: window, padding, slices, 1x1,
# rank.
LOWERING_CASES = [
    "1d_causal_large_coarse",
    "2d_stride_even",
    "2d_dilation_same",
    "2d_large_coarse_stride",
    "2d_1x1",
    "2d_1x1_stride",
    "2d_slice_per_group",
    "2d_shared_slices",
    "2d_even_shared_slices",
    "3d_same_stride",
]
ALL_CASES = pytest.mark.parametrize(
    "case",
    [case if case in LOWERING_CASES else once(case) for case in CASES],
)
# Of balanced layers: few, since G and B are computed as in other cases.
BALANCED_CASES = [
    "1d_causal_large_coarse",
    "2d_stride_even",
    "2d_dilation_same",
    "2d_1x1_stride",
    "3d_same_stride",
]
# Of low-rank layers: few, since R is the group convolution of other cases.
LOW_RANK_CASES = {
    "1d_causal": (
        (2, 7, 4),
        dict(filters=5, kernel_size=3, padding="causal", groups=2),
    ),
    "2d_plain": ((2, 5, 6, 4), dict(filters=6, kernel_size=3, groups=1)),
    "2d_stride": (
        (2, 7, 6, 4),
        dict(filters=3, kernel_size=3, strides=2, padding="same", groups=2),
    ),
    "2d_dilation": (
        (2, 7, 6, 4),
        dict(filters=6, kernel_size=(3, 2), dilation_rate=2, groups=4),
    ),
    "2d_1x1": (
        (2, 5, 4, 4),
        dict(filters=6, kernel_size=1, groups=2, lowering="matmul"),
    ),
    "3d": ((2, 3, 4, 3, 4), dict(filters=6, kernel_size=2, groups=2)),
}
