from keras_tlgc.lab import recipes
from keras_tlgc.lab.comparison import (
    COMPARISON_FILES,
    Comparison,
    compare,
    stored_comparison,
)
from keras_tlgc.lab.data.batches import Batches
from keras_tlgc.lab.data.image_folder import ImageFolder
from keras_tlgc.lab.data.sets import DATASETS, ImageData, load_data
from keras_tlgc.lab.estimates import Estimate, estimate, estimates_table
from keras_tlgc.lab.experiments import (
    Experiment,
    estimate_experiment,
    read_experiment,
    run_experiment,
    smoke,
)
from keras_tlgc.lab.folder import FILES, RunFolder
from keras_tlgc.lab.outcomes import Configuration, Row, table
from keras_tlgc.lab.recipes import AUGMENTATIONS, RECIPES, Recipe
from keras_tlgc.lab.run import (
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
    "PRECISIONS",
    "RECIPES",
    "Batches",
    "Comparison",
    "Configuration",
    "Estimate",
    "Experiment",
    "ImageData",
    "ImageFolder",
    "Recipe",
    "Result",
    "Row",
    "RunFolder",
    "Settings",
    "compare",
    "estimate",
    "estimate_experiment",
    "estimates_table",
    "load_data",
    "read_experiment",
    "recipes",
    "run_experiment",
    "smoke",
    "stored_comparison",
    "table",
    "train",
    "with_recipe",
]
