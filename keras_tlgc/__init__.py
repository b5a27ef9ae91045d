"""Two-level group convolution for Keras 3.

Importing this package registers its layers, so that `keras.saving.load_model`
finds them.
"""

__version__ = "0.1.0"

from keras_tlgc import applications, costs, distribution, folding, layers, ops

__all__ = [
    "applications",
    "costs",
    "distribution",
    "folding",
    "layers",
    "ops",
]
