"""Products of low rank that are added to grouped kernels."""

from collections.abc import Callable, Sequence
from typing import Any

from keras import ops

from keras_tlgc.ops.concrete import einsum, reshape
from keras_tlgc.types import Tensor


def with_products(
    convolve: Callable[..., Any], scale: float
) -> Callable[..., Any]:
    """Return `convolve`, made to add products of low rank to its kernels.

    Both are functions of `(inputs, kernels, groups, peers)`. The result takes,
    after the kernels, a pair of factors for each of them.
    """

    def adapted(
        inputs: Tensor,
        kernels: Sequence[Tensor],
        groups: int,
        peers: Any,
    ) -> Any:
        count = len(kernels) // 3
        factors = kernels[count:]
        triples = zip(kernels, factors[::2], factors[1::2], strict=False)
        merged = [add_product(*triple, scale) for triple in triples]
        return convolve(inputs, merged, groups, peers)

    return adapted


def add_product(kernel: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Return `kernel + scale * A B`, each group with its own A and B.

    The shapes are `(..., n)`, `(..., groups * rank)` and `(rank, n)`, each with
    the groups along the last axis.
    """
    kernel, a, b = map(ops.convert_to_tensor, (kernel, a, b))
    rank, columns = b.shape
    groups = a.shape[-1] // rank
    product = einsum(
        "mgr,rgn->mgn",
        reshape(a, (-1, groups, rank)),
        reshape(b, (rank, groups, columns // groups)),
    )
    product = ops.multiply(scale, reshape(product, kernel.shape))
    return ops.cast(ops.add(kernel, product), kernel.dtype)
