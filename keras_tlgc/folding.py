"""The place of `keras_tlgc.rewrite.fold_batch_norm` in version 0.1.0."""

from keras_tlgc.rewrite import fold_batch_norm

__all__ = ["fold_batch_norm"]
