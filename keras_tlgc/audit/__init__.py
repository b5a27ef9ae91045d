"""What a train step moves over a mesh, read from the compiled program."""

from keras_tlgc.audit.audit import audit, audit_network
from keras_tlgc.audit.report import Audit

__all__ = ["Audit", "audit", "audit_network"]
