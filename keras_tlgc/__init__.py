"""Two-level group convolution for Keras 3.

Importing this package registers its layers, so that `keras.saving.load_model`
finds them.
"""

__version__ = "0.1.0"

from keras_tlgc import (
    applications,
    conversion,
    costs,
    distribution,
    folding,
    layers,
    ops,
    optimizers,
)
from keras_tlgc.conversion import convert

__all__ = [
    "applications",
    "conversion",
    "convert",
    "costs",
    "distribution",
    "folding",
    "layers",
    "ops",
    "optimizers",
]
