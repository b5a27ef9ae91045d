import importlib.metadata
import json
import tomllib

import keras
import pytest
from documents import README
from helpers import run_python

import keras_tlgc

ROOT = README.parent
NEW_MODULES = """
import json, sys
import keras
before = set(sys.modules)
import keras_tlgc
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(json.dumps(sorted(new - sys.stdlib_module_names)))
"""


def test_import_brings_in_nothing_but_the_package():
    # No typer, rich, matplotlib..., and no backend that Keras left out.
    assert json.loads(run_python(NEW_MODULES).splitlines()[-1]) == [
        "keras_tlgc"
    ]


def test_every_folder_of_the_package_is_in_the_wheel():
    folders = [
        init.parent.relative_to(ROOT)
        for init in (ROOT / "keras_tlgc").rglob("__init__.py")
    ]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    options = project["tool"]["setuptools"]
    elsewhere = options["package-dir"]
    sources = {
        elsewhere.get(name, name.replace(".", "/"))
        for name in options["packages"]
    }
    assert sources == {"applications", *(str(folder) for folder in folders)}


def test_version():
    version = importlib.metadata.version("keras-tlgc")
    assert keras_tlgc.__version__ == version


@pytest.mark.parametrize(
    "module, names",
    [
        (
            keras_tlgc,
            {
                "applications",
                "costs",
                "folding",
                "layers",
                "ops",
                "optimizers",
            },
        ),
        (
            keras_tlgc.layers,
            {
                f"{kind}{rank}D"
                for kind in (
                    "GroupConv",
                    "BalancedGroupConv",
                    "LowRankConv",
                    "TwoLevelGroupConv",
                    "ShuffleGroupConv",
                )
                for rank in (1, 2, 3)
            }
            | {"LearnableGroupConv2D"},
        ),
        (
            keras_tlgc.applications,
            {
                "MobileNetV2",
                "WideResNet",
                "WideResNet28x10",
                "WideResNet34x2",
                "WideResNetImageNet",
            },
        ),
        (
            keras_tlgc.ops,
            {
                "LOWERINGS",
                "block_diagonal",
                "channel_shuffle",
                "choose_lowering",
                "grouped_conv",
            },
        ),
    ],
)
def test_public_names(module, names):
    assert names <= set(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize("name", keras_tlgc.layers.__all__)
def test_layers_are_registered(name):
    cls = getattr(keras_tlgc.layers, name)
    registered = f"keras_tlgc>{name}"
    assert keras.saving.get_registered_name(cls) == registered
    assert keras.saving.get_registered_object(registered) is cls
