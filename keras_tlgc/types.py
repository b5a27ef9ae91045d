"""Names for values that Keras has no types for."""

from typing import Any, TypeAlias

# A tensor or variable of any backend, an array, or a `keras.KerasTensor`.
Tensor: TypeAlias = Any
# One call of a layer or operation in a functional model.
Node: TypeAlias = Any
