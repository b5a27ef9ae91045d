"""Existing models, converted to two-level group convolutions."""

from keras_tlgc.conversion.convert import Conversion, convert
from keras_tlgc.conversion.projection import Projection, project_kernel
from keras_tlgc.conversion.report import Report, Row
from keras_tlgc.conversion.rules import largest_divisor

__all__ = [
    "Conversion",
    "Projection",
    "Report",
    "Row",
    "convert",
    "largest_divisor",
    "project_kernel",
]
