import re

import keras
import pytest
from documents import README, snippets
from meshes import ON_JAX

TRAINING = README.parent / "docs" / "training.md"
DISTRIBUTION = README.parent / "docs" / "distribution.md"
PAGE = README.read_text()

SNIPPETS = snippets(README)


def test_snippets_are_found():
    assert len(SNIPPETS) == 6


@ON_JAX
def test_snippets_on_distribution(capsys):
    parts = snippets(DISTRIBUTION)
    assert len(parts) == 8
    exec("\n".join(parts), {})
    shown = re.findall(r"```text\n(.*?)```", DISTRIBUTION.read_text(), re.S)
    printed = squeezed(capsys.readouterr().out)
    for line in "".join(shown).splitlines():
        assert line == "..." or squeezed(line) in printed


def squeezed(text):
    """Return text whose columns are as wide as in any other table."""
    return re.sub(" +", " ", text)


@pytest.mark.parametrize(
    "snippet",
    [
        pytest.param(
            snippet, marks=ON_JAX if "keras.distribution" in snippet else ()
        )
        for snippet in SNIPPETS
    ],
    ids=range(len(SNIPPETS)),
)
def test_snippet_builds_a_model(snippet):
    keras.config.set_image_data_format("channels_last")
    names = {}
    exec(snippet, names)
    if keras.distribution.distribution() is not None:
        assert len(names["model"].variables[0].value.devices()) == 4
        return
    x = keras.random.uniform((1, *names["model"].input_shape[1:]))
    assert names.get("lighter", names["model"])(x).shape[0] == 1


def test_snippet_on_training():
    from keras_tlgc.lab import recipes

    [snippet] = snippets(TRAINING)
    names = {}
    exec(snippet, names)
    assert names["run"].epochs == 20 and names["run"].weight_decay == 5e-4
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in TRAINING.read_text().splitlines()
        if line.startswith("| ")
    ]
    table = {first: cells for first, *cells in rows}
    for i, make in enumerate(recipes.RECIPES.values()):
        recipe = make()
        assert table["epochs"][i] == str(recipe.epochs)
        assert table["batch"][i] == str(recipe.batch_size)
        assert table["rate"][i] == str(recipe.learning_rate)
        assert float(table["weight decay"][i]) == recipe.weight_decay
        assert table["augmentation"][i] == f"`{recipe.augmentation}`"
        drops = [round(share * recipe.epochs) for share in recipe.drops]
        drops = ", ".join(map(str, drops))
        assert table["a tenth after"][i].removesuffix(" epochs") == drops


def test_parameters_in_the_readme():
    from keras_tlgc.applications import WideResNet28x10
    from keras_tlgc.costs import count_params

    count = count_params(lambda: WideResNet28x10(conv="two_level", groups=8))
    assert f"# {count / 1e6:.2f}M parameters" in PAGE
