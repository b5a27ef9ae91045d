"""Imports go one way through the rooms of the package.

The rooms are in order: a module imports from its own and from those before it.
"""

import ast
import json
from pathlib import Path

import pytest
from helpers import run_python

import keras_tlgc

ROOMS = {
    # Starts the command line, before Keras is imported.
    "launcher": ["launcher"],
    "base": [
        "_keras",
        "files",
        "graphs",
        "precision",
        "types",
        "validation",
        "text",
        "timing",
        "valueless",
        "variables",
    ],
    "sharding": ["sharding"],
    "ops": ["ops"],
    "layers": ["layers"],
    "applications": ["applications"],
    "distribution": ["distribution"],
    "audit": ["audit"],
    "rewrite": ["rewrite"],
    "tuning": ["tuning"],
    "costs": ["costs", "optimizers"],
    "lab": ["lab"],
    "cli": ["cli"],
    # Names of version 0.1.0, which lead to where things are now.
    "doors": ["conversion", "folding", "training"],
}
# The modules that alone may import what comes after them.
EXCEPTIONS = {
    ("distribution", "audit"): "distribution/__init__.py",  # As the doors.
    ("launcher", "cli"): "launcher/__init__.py",  # The entry point.
}
ROOM_OF = {part: room for room, parts in ROOMS.items() for part in parts}
ORDER = list(ROOMS)
[PACKAGE] = map(Path, keras_tlgc.__path__)
[APPLICATIONS] = map(Path, keras_tlgc.applications.__path__)


def modules():
    """Yield the path of each module below the package, and where it lies."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if path != PACKAGE / "__init__.py":  # It gathers the library.
            yield path.relative_to(PACKAGE), path
    for path in sorted(APPLICATIONS.rglob("*.py")):
        yield "applications" / path.relative_to(APPLICATIONS), path


def imported(tree):
    """Yield the parts of the package that a module imports, at any place."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "A relative import is not looked through."
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    for top, *rest in (name.split(".") for name in names):
        if top == "keras_tlgc_launcher":
            yield "launcher"
        elif top == "keras_tlgc" and rest and rest[0] != "__version__":
            yield rest[0]


def misplaced(path, source):
    """Return the imports of a module that go the wrong way."""
    part = path.parts[0].removesuffix(".py")
    return [
        f"{path} imports {other}"
        for other in imported(ast.parse(source))
        if EXCEPTIONS.get((part, other)) != path.as_posix()
        and ORDER.index(ROOM_OF[part]) < ORDER.index(ROOM_OF[other])
    ]


def test_imports_go_one_way():
    found = [
        line
        for path, file in modules()
        for line in misplaced(path, file.read_text())
    ]
    assert not found


@pytest.mark.parametrize(
    "path, source, is_misplaced",
    [
        ("ops/pointwise.py", "import keras_tlgc.layers", True),
        ("ops/pointwise.py", "from keras_tlgc import layers", True),
        ("ops/pointwise.py", "def f():\n from keras_tlgc.lab import run", True),
        ("layers/lora.py", "from keras_tlgc.ops import grouped_conv", False),
        ("layers/lora.py", "from keras_tlgc.layers import lora", False),
        ("rewrite/rules.py", "from keras_tlgc.folding import x", True),
        ("costs.py", "from keras_tlgc.rewrite import convert", False),
        ("distribution/mesh.py", "from keras_tlgc import audit", True),
        ("distribution/__init__.py", "from keras_tlgc import audit", False),
        ("lab/run.py", "from keras_tlgc_launcher import main", False),
        ("lab/run.py", "import numpy, keras", False),
    ],
)
def test_what_is_misplaced(path, source, is_misplaced):
    assert bool(misplaced(Path(path), source)) == is_misplaced


def test_each_module_has_a_room():
    parts = {path.parts[0].removesuffix(".py") for path, _ in modules()}
    assert parts <= set(ROOM_OF)


LOADED = """
import json, sys, keras_tlgc
print(json.dumps([n for n in sys.modules if n.startswith("keras_tlgc")]))
"""


@pytest.mark.once
def test_the_library_loads_neither_laboratory_nor_commands():
    loaded = json.loads(run_python(LOADED).splitlines()[-1])
    rooms = {name.split(".")[1] for name in loaded if "." in name}
    assert {"layers", "rewrite"} <= rooms
    assert not rooms & {"lab", "cli", "training"}
    assert "keras_tlgc_launcher" not in loaded
