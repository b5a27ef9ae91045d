"""What is known of one layer's inputs and targets, and the kernels it gives."""

from typing import Any, NamedTuple, TypeAlias

import keras
import numpy as np
from keras import ops

from keras_tlgc.layers.base_group_conv import BaseGroupConv
from keras_tlgc.rewrite.moments import RIDGE, Moments, Sums
from keras_tlgc.rewrite.projection import fit_kernel

Array: TypeAlias = np.ndarray[Any, Any]

# Weights of the original kernel that are tried in turn. The larger ones are for
# few images: what these say of a kernel does not hold for others.
RIDGES = (RIDGE, 1e-2, 1e-1)
OVERFIT = 1.5  # The ratio of errors from which on the next one is tried.


class Fitted(NamedTuple):
    """What the fit of a layer came to.

    Attributes:
        error: float, the share of the targets' variance that the layer misses
            on the images held out, given the inputs that it gets.
        pays: whether the fitted kernels are better there than the projected
            ones, which the layer keeps otherwise.
    """

    error: float
    pays: bool


class Samples:
    """Patches of a layer's inputs, and the targets of its outputs.

    Args:
        old: the convolution to stand in for.
        has_norm: whether a normalisation follows that takes any mean.
        scale: array of shape `(n,)`, what each output is multiplied by then.
    """

    def __init__(
        self, old: keras.layers.Layer, has_norm: bool, scale: Array
    ) -> None:
        self.old = old
        self.kernel = ops.convert_to_numpy(old.kernel)
        self.has_norm = has_norm
        # Else the mean of the outputs has to come from the kernel.
        self.central = has_norm or old.use_bias
        self.scale = scale
        matrix = self.kernel.reshape(-1, self.kernel.shape[-1])
        self.sums = Sums(matrix.astype("float64"))
        self.held: list[tuple[Array, Array]] = []

    def add(self, patches: Array, targets: Array, is_held: bool) -> None:
        """Add the rows of two arrays, to be fitted to or to be held out."""
        if is_held:
            self.held.append((patches, targets))
        else:
            self.sums.add(patches, targets, outputs_of(self.old, patches))

    def fit(self, new: BaseGroupConv, form: str) -> Fitted:
        """Set the weights of the new layer, which holds projected kernels.

        Args:
            new: the layer.
            form: what its kernels are: see `project_kernel`.
        """
        best = [ops.convert_to_numpy(one) for one in new.sharded_kernels]
        error = projected = self.error(new)
        moments = self.moments()
        for ridge in RIDGES:
            found = fit_kernel(
                self.kernel * self.scale,
                new.groups,
                new.gathered_channels // new.groups,
                moments,
                form,
                ridge,
            )
            kernels = found.over(self.scale).kernels
            set_kernels(new, kernels)
            now = self.error(new)
            if now < error:
                best, error = kernels, now
            if now < OVERFIT * found.error:
                break
        set_kernels(new, best)
        if new.use_bias:
            patch, target = self.sums.means
            new.bias.assign(target - patch @ dense_of(new))
        return Fitted(error, error < projected)

    def moments(self) -> Moments:
        """Return the moments, with the outputs scaled.

        Raises:
            ValueError: if inputs or outputs of the layer are not finite.
        """
        found = self.sums.moments(self.central)
        if not all(np.isfinite(one).all() for one in found[:3]):
            raise ValueError(
                "Where a layer is fitted, its inputs and outputs must be "
                "finite, and their squares. Received: the layer "
                f"'{self.old.name}', of which some are not. Check the weights "
                "of the model and the range of `data`, or convert without it."
            )
        return found._replace(
            cross=found.cross * self.scale,
            targets=found.targets * self.scale**2,
        )

    def error(self, layer: BaseGroupConv) -> float:
        """Return the share of the variance that a layer misses, if held out."""
        kernel = dense_of(layer)
        patch, target = self.sums.means
        shift = target - patch @ kernel if self.central else 0.0
        missed = power = 0.0
        for patches, targets in self.held:
            rest = (targets - patches @ kernel - shift) * self.scale
            missed += np.sum(rest**2)
            power += np.sum(((targets - target) * self.scale) ** 2)
        return float(missed / power) if power else 0.0


def dense_of(layer: keras.layers.Layer) -> Array:
    """Return a layer's dense kernel, of shape `(d, n)`."""
    kernel = ops.convert_to_numpy(layer.dense_kernel())
    return kernel.reshape(-1, kernel.shape[-1])


def set_kernels(layer: BaseGroupConv, values: list[Array]) -> None:
    """Set the kernels of a layer: G, R, C and B, or those that it has."""
    for kernel, value in zip(layer.sharded_kernels, values, strict=True):
        kernel.assign(value)


def outputs_of(layer: keras.layers.Layer, patches: Array) -> Array:
    """Return what a convolution makes of patches, before its activation."""
    kernel = ops.convert_to_numpy(layer.kernel)
    outputs: Array = patches @ kernel.reshape(-1, kernel.shape[-1])
    if layer.bias is None:
        return outputs
    return outputs + ops.convert_to_numpy(layer.bias)
