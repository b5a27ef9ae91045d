"""Some of `keras.ops`, for tensors that are not symbolic.

Each function of `keras.ops` first looks for symbolic tensors among its
arguments. PyTorch computes every layer anew, so there that takes 0.02 to 0.2 ms
of each call, as long as a narrow layer's arithmetic.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_tlgc.types import Tensor


def reshape(tensor: Tensor, shape: Sequence[Any]) -> Tensor:
    """Return `ops.reshape(tensor, shape)`."""
    if keras.backend.backend() == "torch":
        return tensor.reshape(shape)
    return ops.reshape(tensor, shape)


def swapaxes(tensor: Tensor, axis1: int, axis2: int) -> Tensor:
    """Return `ops.swapaxes(tensor, axis1, axis2)`."""
    if keras.backend.backend() == "torch":
        return tensor.swapaxes(axis1, axis2)
    return ops.swapaxes(tensor, axis1, axis2)


def concatenate(tensors: Sequence[Tensor], axis: int) -> Tensor:
    """Return `ops.concatenate(tensors, axis)` of tensors of one dtype."""
    if keras.backend.backend() == "torch":
        import torch

        return torch.cat(tensors, axis)
    return ops.concatenate(tensors, axis)


def einsum(equation: str, *tensors: Tensor) -> Tensor:
    """Return `ops.einsum(equation, *tensors)` of tensors of one dtype."""
    if keras.backend.backend() == "torch":
        import torch

        return torch.einsum(equation, *tensors)
    return ops.einsum(equation, *tensors)


def split(tensor: Tensor, sizes: Sequence[int], axis: int) -> list[Tensor]:
    """Split `tensor` into parts that have these sizes along `axis`."""
    if keras.backend.backend() == "torch":
        # Keras puts the sizes into a tensor. torch.export cannot trace that,
        # and on a GPU the tensor would have to be copied back.
        return tensor.split(sizes, axis)
    return ops.split(tensor, list(itertools.accumulate(sizes[:-1])), axis=axis)
