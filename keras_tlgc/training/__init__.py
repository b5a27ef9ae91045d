from keras_tlgc.training import recipes
from keras_tlgc.training.batches import Batches
from keras_tlgc.training.comparison import (
    COMPARISON_FILES,
    VARIED,
    Comparison,
    compare,
    stored_comparison,
)
from keras_tlgc.training.crops import Crops, imagenet_crops
from keras_tlgc.training.data import DATASETS, RECIPE_OF, ImageData, load_data
from keras_tlgc.training.experiments import (
    Experiment,
    read_experiment,
    run_experiment,
    smoke,
)
from keras_tlgc.training.folder import FILES, RunFolder
from keras_tlgc.training.image_folder import ImageFolder
from keras_tlgc.training.networks import NETWORKS, network_builder
from keras_tlgc.training.outcomes import Configuration, Row, table
from keras_tlgc.training.recipes import AUGMENTATIONS, RECIPES, Recipe
from keras_tlgc.training.run import (
    PRECISIONS,
    Result,
    Settings,
    train,
    with_recipe,
)

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
    "Configuration",
    "Crops",
    "Experiment",
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
    "read_experiment",
    "recipes",
    "run_experiment",
    "smoke",
    "stored_comparison",
    "table",
    "train",
    "with_recipe",
]
