"""Models made from models: converted, or folded for inference."""

from keras_tlgc.rewrite.convert import Conversion, convert
from keras_tlgc.rewrite.deploy import deploy
from keras_tlgc.rewrite.distilling import OutputDistillation, distill
from keras_tlgc.rewrite.folding import fold_batch_norm
from keras_tlgc.rewrite.moments import Moments
from keras_tlgc.rewrite.projection import Projection, project_kernel
from keras_tlgc.rewrite.report import Report, Row
from keras_tlgc.rewrite.rules import largest_divisor

__all__ = [
    "Conversion",
    "Moments",
    "OutputDistillation",
    "Projection",
    "Report",
    "Row",
    "convert",
    "deploy",
    "distill",
    "fold_batch_norm",
    "largest_divisor",
    "project_kernel",
]
