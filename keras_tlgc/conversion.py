"""The name that `keras_tlgc.rewrite` had in version 0.1.0."""

from keras_tlgc.rewrite import (
    Conversion,
    Projection,
    Report,
    Row,
    convert,
    largest_divisor,
    project_kernel,
)

__all__ = [
    "Conversion",
    "Projection",
    "Report",
    "Row",
    "convert",
    "largest_divisor",
    "project_kernel",
]
