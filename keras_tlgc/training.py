"""The name that `keras_tlgc.lab` had in version 0.1.0."""

from keras_tlgc.lab import *  # noqa: F403
from keras_tlgc.lab import __all__  # noqa: F401
