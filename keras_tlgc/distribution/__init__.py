from keras_tlgc.distribution.layout_map import GroupLayoutMap, get_layout_map

__all__ = ["GroupLayoutMap", "get_layout_map"]
