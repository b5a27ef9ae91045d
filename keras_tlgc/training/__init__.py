from keras_tlgc.training.data import DATASETS, ImageData, load_data
from keras_tlgc.training.folder import FILES, RunFolder
from keras_tlgc.training.run import Result, Settings, train

__all__ = [
    "DATASETS",
    "FILES",
    "ImageData",
    "Result",
    "RunFolder",
    "Settings",
    "load_data",
    "train",
]
