from keras_tlgc.training import recipes
from keras_tlgc.training.batches import Batches
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
from keras_tlgc.training.data import DATASETS, RECIPE_OF, ImageData, load_data
from keras_tlgc.training.folder import FILES, RunFolder
from keras_tlgc.training.image_folder import ImageFolder
from keras_tlgc.training.networks import NETWORKS, network_builder
from keras_tlgc.training.recipes import AUGMENTATIONS, RECIPES, Recipe
from keras_tlgc.training.run import PRECISIONS, Result, Settings, train

__all__ = [
    "AUGMENTATIONS",
    "COMPARISON_FILES",
    "DATASETS",
    "FILES",
    "NETWORKS",
    "PRECISIONS",
    "RECIPES",
    "RECIPE_OF",
    "VARIED",
    "Batches",
    "Comparison",
    "Crops",
    "ImageData",
    "ImageFolder",
    "Recipe",
    "Result",
    "Row",
    "RunFolder",
    "Settings",
    "compare",
    "imagenet_crops",
    "load_data",
    "network_builder",
    "recipes",
    "stored_comparison",
    "table",
    "train",
]
