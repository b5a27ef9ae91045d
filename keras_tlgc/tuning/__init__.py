"""Which lowering is fastest on the machine at hand."""

from keras_tlgc.tuning.report import Row, Tuning
from keras_tlgc.tuning.tune import tune

__all__ = ["Row", "Tuning", "tune"]
