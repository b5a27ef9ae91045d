"""Groups over the devices of a mesh."""

from keras_tlgc.distribution.checkpoint import save
from keras_tlgc.distribution.following import plan
from keras_tlgc.distribution.group_parallel import GroupParallel
from keras_tlgc.distribution.guard import uneven_batches
from keras_tlgc.distribution.layout_map import GroupLayoutMap, get_layout_map
from keras_tlgc.distribution.mesh import model_parallel

__all__ = [
    "GroupLayoutMap",
    "GroupParallel",
    "get_layout_map",
    "model_parallel",
    "plan",
    "save",
    "uneven_batches",
]


def __getattr__(name):
    """Find what has moved to `keras_tlgc.audit` since version 0.1.0."""
    from keras_tlgc import audit

    if name in audit.__all__:
        return getattr(audit, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
