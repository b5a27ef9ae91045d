"""Two-level group convolution for Keras 3.

Importing this package registers its layers, so that `keras.saving.load_model`
finds them.
"""

__version__ = "0.1.0"

from keras_tlgc import (
    applications,
    audit,
    conversion,
    costs,
    distribution,
    folding,
    layers,
    ops,
    optimizers,
    rewrite,
    tuning,
)
from keras_tlgc.rewrite import convert, deploy, distill
from keras_tlgc.tuning import tune

__all__ = [
    "applications",
    "audit",
    "conversion",
    "convert",
    "costs",
    "deploy",
    "distill",
    "distribution",
    "folding",
    "layers",
    "ops",
    "optimizers",
    "rewrite",
    "tune",
    "tuning",
]
