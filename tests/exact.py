"""Kernels that two levels, or one, express exactly."""

import keras
import numpy as np
from helpers import to_numpy

from keras_tlgc.rewrite import project_kernel

CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)


def closest(kernel, groups, coarse_channels=1):
    """Return the dense kernel of a kernel's projection."""
    projection = project_kernel(kernel, groups, coarse_channels)
    dense = np.zeros_like(kernel)
    m, n = (size // groups for size in kernel.shape[-2:])
    for i in range(groups):
        mine = slice(i * m, (i + 1) * m)
        own = slice(i * n, (i + 1) * n)
        coarse = slice(i * coarse_channels, (i + 1) * coarse_channels)
        dense[..., mine, own] = projection.group_kernel[..., own]
        dense[..., mine, :] += (
            projection.restriction_kernel[..., coarse]
            @ projection.coarse_kernel[coarse]
        )
    return dense


def make_exact(model, groups, coarse_channels=1):
    """Change the kernels that can be converted so that this loses nothing."""
    for layer in model._flatten_layers():
        if isinstance(layer, CONVOLUTIONS) and layer.built:
            *_, m, n = layer.kernel.shape
            if layer.groups == 1 and m % groups == 0 and n % groups == 0:
                layer.kernel.assign(
                    closest(to_numpy(layer.kernel), groups, coarse_channels)
                )
