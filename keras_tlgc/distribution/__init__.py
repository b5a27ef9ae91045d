from keras_tlgc.distribution.audit import Audit, audit, audit_network
from keras_tlgc.distribution.checkpoint import save
from keras_tlgc.distribution.guard import uneven_batches
from keras_tlgc.distribution.layout_map import GroupLayoutMap, get_layout_map
from keras_tlgc.distribution.mesh import model_parallel

__all__ = [
    "Audit",
    "GroupLayoutMap",
    "audit",
    "audit_network",
    "get_layout_map",
    "model_parallel",
    "save",
    "uneven_batches",
]
