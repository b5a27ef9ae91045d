"""Constraints and regularizers of a kernel, for the kernels that replace it.

Each of G, R and C is the kernel of a convolution; C is that of a 1x1 one,
stored without its window. So each of the three gets the constraint and the
regularizer of the kernel that they replace.
"""

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.constraints import Constraint
from keras.regularizers import Regularizer

from keras_tlgc.layers.base_group_conv import BaseGroupConv
from keras_tlgc.rewrite.copying import one_line
from keras_tlgc.types import Tensor

# These treat each entry by itself, so a kernel may have any axes.
ELEMENTWISE = (
    keras.constraints.NonNeg,
    keras.regularizers.L1,
    keras.regularizers.L2,
    keras.regularizers.L1L2,
)


class _Pointwise:
    """Applies a function of kernels to C, the matrix of a 1x1 convolution.

    Args:
        inner: the constraint or regularizer.
        rank: integer, the number of spatial axes of the convolution.
    """

    def __init__(self, inner: Constraint | Regularizer, rank: int) -> None:
        self.inner = inner
        self.rank = rank

    def of_kernel(self, matrix: Tensor) -> Tensor:
        shape = (1,) * self.rank + tuple(matrix.shape)
        return self.inner(ops.reshape(matrix, shape))

    def get_config(self) -> dict[str, Any]:
        inner = keras.saving.serialize_keras_object(self.inner)
        return {"inner": inner, "rank": self.rank}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "_Pointwise":
        inner = keras.saving.deserialize_keras_object(config["inner"])
        return cls(inner, config["rank"])


@keras.saving.register_keras_serializable(package="keras_tlgc")
class PointwiseConstraint(_Pointwise, Constraint):
    """A constraint on kernels, applied to the coarse kernel C."""

    def __call__(self, w: Tensor) -> Tensor:
        return ops.reshape(self.of_kernel(w), w.shape)


@keras.saving.register_keras_serializable(package="keras_tlgc")
class PointwiseRegularizer(_Pointwise, Regularizer):
    """A regularizer of kernels, applied to the coarse kernel C."""

    def __call__(self, x: Tensor) -> Tensor:
        return self.of_kernel(x)


def coarse_constraint(layer: keras.layers.Layer) -> Constraint | None:
    """Return a convolution's kernel constraint in a form that fits C."""
    rank = len(layer.kernel.shape) - 2
    return _for_matrix(PointwiseConstraint, layer.kernel_constraint, rank)


def coarse_regularizer(layer: keras.layers.Layer) -> Regularizer | None:
    """Return a convolution's kernel regularizer in a form that fits C."""
    rank = len(layer.kernel.shape) - 2
    return _for_matrix(PointwiseRegularizer, layer.kernel_regularizer, rank)


def _for_matrix(
    pointwise: type[_Pointwise],
    inner: Constraint | Regularizer | None,
    rank: int,
) -> Constraint | Regularizer | None:
    # The kernel of a `Dense` layer is a matrix itself.
    if inner is None or isinstance(inner, ELEMENTWISE) or rank == 0:
        return inner
    return pointwise(inner, rank)


def why_not(
    layer: keras.layers.Layer, shapes: Iterable[tuple[int, ...]]
) -> str:
    """Return why kernels of these shapes cannot replace a layer's kernel.

    Returns:
        A part of a sentence, about the first shape that the kernel's constraint
        or regularizer refuses; an empty string if they accept all.
    """
    for name in ("kernel_constraint", "kernel_regularizer"):
        function = getattr(layer, name)
        for shape in shapes if function is not None else ():
            kernel = ops.zeros(shape, layer.kernel.dtype)
            try:
                result = function(kernel)
            except Exception as error:  # Users' own may raise anything.
                return (
                    f"its `{name}` takes no kernel of shape {shape}: "
                    f"{one_line(error)}"
                )
            if name == "kernel_constraint" and result.shape != kernel.shape:
                return f"its `{name}` changes a kernel's shape {shape}"
    return ""


def constraint_notes(new: Iterable[BaseGroupConv]) -> list[str]:
    """Return what a report says of the constraints of new layers."""
    bound = [layer for layer in new if layer.kernel_constraint is not None]
    notes = []
    for count, parts, whole in (
        (3, "G, R and C", "blockdiag(G) + C R"),
        (2, "R and C", "C R"),
    ):
        apart = {
            _name(layer.kernel_constraint)
            for layer in bound
            if len(layer.sharded_kernels) == count
            # If its parts have no negative entries, the whole kernel has none.
            and not isinstance(
                layer.kernel_constraint, keras.constraints.NonNeg
            )
        }
        if apart:
            notes.append(
                f"{', '.join(sorted(apart))}: holds for {parts} each, no "
                f"longer for the whole kernel, {whole}"
            )
    outside = [layer.name for layer in bound if not _is_met(layer)]
    if outside:
        notes.append(
            f"{len(outside)} layers do not meet their kernel constraints yet, "
            "so the first step of training changes them more than the report "
            f"says: {', '.join(outside[:3])}{', ...' * (len(outside) > 3)}"
        )
    return notes


def _is_met(layer: BaseGroupConv) -> bool:
    """Return whether the constraints on a layer's kernels change nothing."""
    for kernel in layer.sharded_kernels:
        if kernel.constraint is not None:
            before, after = (
                ops.convert_to_numpy(ops.cast(value, "float32"))
                for value in (kernel, kernel.constraint(kernel))
            )
            close = {"rtol": 1e-3, "atol": 1e-3 * np.abs(before).max()}
            if not np.allclose(after, before, **close):
                return False
    return True


def _name(constraint: Constraint) -> str:
    return getattr(constraint, "__name__", type(constraint).__name__)
