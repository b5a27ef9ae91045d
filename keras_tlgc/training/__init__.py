from keras_tlgc.training.comparison import (
    COMPARISON_FILES,
    VARIED,
    Comparison,
    Row,
    compare,
    stored_comparison,
    table,
)
from keras_tlgc.training.crops import Crops, imagenet_crops
from keras_tlgc.training.data import DATASETS, ImageData, load_data
from keras_tlgc.training.folder import FILES, RunFolder
from keras_tlgc.training.run import Result, Settings, train

__all__ = [
    "COMPARISON_FILES",
    "DATASETS",
    "FILES",
    "VARIED",
    "Comparison",
    "Crops",
    "ImageData",
    "Result",
    "Row",
    "RunFolder",
    "Settings",
    "compare",
    "imagenet_crops",
    "load_data",
    "stored_comparison",
    "table",
    "train",
]
