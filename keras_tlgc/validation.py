"""Checks of arguments: each error states the rule, what came and the remedy."""

import math
from collections.abc import Iterable
from numbers import Integral
from typing import Any, TypeVar

T = TypeVar("T")


def positive_int(name: str, value: Any) -> int:
    """Return `value` as an int, or raise a `ValueError` unless it is >= 1."""
    if not _is_int(value) or value < 1:
        raise ValueError(
            f"`{name}` must be a positive integer. "
            f"Received: {name}={value!r}. Pass an integer of at least 1."
        )
    return int(value)


def positive_ints(name: str, value: object, length: int) -> tuple[int, ...]:
    """Return `value`, an int or a sequence of `length` ints, as a tuple."""
    values = (value,) * length if _is_int(value) else value
    values = tuple(values) if isinstance(values, Iterable) else ()
    if len(values) != length or not all(_is_int(v) and v >= 1 for v in values):
        raise ValueError(
            f"`{name}` must be a positive integer or {length} of them. "
            f"Received: {name}={value!r}. "
            f"Pass one integer of at least 1, or a tuple of {length}."
        )
    return tuple(int(v) for v in values)


def one_of(name: str, value: Any, allowed: Iterable[T]) -> T:
    """Return `value`, or raise a `ValueError` unless it is in `allowed`."""
    allowed = list(allowed)
    if value not in allowed:
        raise ValueError(
            f"`{name}` must be one of {allowed}. "
            f"Received: {name}={value!r}. Pick one of these names."
        )
    return value


def divisible_by_groups(name: str, value: int, groups: int) -> None:
    """Raise a `ValueError` unless `groups` divides `value` channels."""
    if value % groups:
        raise ValueError(
            f"`{name}` must be divisible by `groups`. "
            f"Received: {name}={value}, groups={groups}. "
            f"Allowed groups for {value} channels: {divisors(value)}."
        )


def divisors(value: int) -> list[int]:
    """Return the positive integers that divide `value`.

    For a value above 1e12 these are only those up to 1e6 and their
    counterparts: no layer has so many channels, and the search must end.
    """
    last = min(math.isqrt(value), 10**6)
    small = [n for n in range(1, last + 1) if value % n == 0]
    return sorted({*small, *(value // n for n in small)})


def _is_int(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
