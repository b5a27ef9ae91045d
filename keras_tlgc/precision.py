"""The dtypes that layers are made with, and what their values take."""

import contextlib
import re
from collections.abc import Iterator

import keras


@contextlib.contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Within the context, give new layers the dtype policy of this name."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def bytes_of(dtype: str) -> float:
    """Return the bytes of a value, by the name of its dtype.

    Args:
        dtype: name that Keras or HLO gives to a dtype, such as `"bfloat16"`,
            `"f8e4m3fn"` or `"s4"`: the first number in it is its size in bits.
            Booleans, whose names have no number, take a byte.

    Returns:
        A number, half a byte for dtypes of four bits.
    """
    number = re.search(r"\d+", dtype)
    bits = int(number[0]) if number else 8
    return bits / 8 if bits % 8 else bits // 8
