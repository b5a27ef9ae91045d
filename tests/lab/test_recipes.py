import dataclasses

import keras
import numpy as np
import pytest

from keras_tlgc.lab import AUGMENTATIONS, RECIPES, Recipe, recipes


def rates(recipe, steps_per_epoch=390):
    """Return the rate of each epoch, the same at its first and last step."""
    optimizer = recipe.optimizer(steps_per_epoch)
    optimizer.build([])
    rates = []
    for epoch in range(recipe.epochs):
        ends = set()
        for step in (0, steps_per_epoch - 1):
            optimizer.iterations.assign(epoch * steps_per_epoch + step)
            ends.add(float(optimizer.learning_rate))
        [rate] = ends
        rates.append(rate)
    return rates


def test_cifar_is_the_papers():
    recipe = recipes.cifar()
    expected = [0.1] * 60 + [0.01] * 60 + [0.001] * 40 + [0.0001] * 40
    assert rates(recipe) == pytest.approx(expected)
    assert recipe.batch_size == 128
    optimizer = recipe.optimizer(390)
    assert (optimizer.momentum, optimizer.weight_decay) == (0.9, 5e-4)
    assert recipe.augmentation == "shifts"


def test_imagenet_is_the_papers():
    recipe = recipes.imagenet()
    expected = [0.1] * 30 + [0.01] * 30 + [0.001] * 30
    assert rates(recipe, 10) == pytest.approx(expected)
    assert recipe.optimizer(10).weight_decay == 1e-4
    assert (recipe.augmentation, recipe.image_size) == ("crops", 224)


def test_all_trainable_variables_decay():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(3),
            keras.layers.BatchNormalization(),
        ]
    )
    optimizer = recipes.cifar().optimizer(10)
    optimizer.build(model.trainable_variables)
    assert len(model.trainable_variables) == 4
    assert all(map(optimizer._use_weight_decay, model.trainable_variables))


@pytest.mark.parametrize(
    "powers",
    "0 01 012 0123 00123 001123 0011223 00111233 000112233 0001112233".split(),
)
def test_the_rate_falls_once_at_a_time(powers):
    """Between two epochs, divided by 10, in runs that are short too."""
    recipe = dataclasses.replace(recipes.digits(), epochs=len(powers))
    expected = [0.1 / 10 ** int(power) for power in powers]
    for steps_per_epoch in (1, 5):
        assert rates(recipe, steps_per_epoch) == pytest.approx(expected)


def test_the_rate_falls_within_the_run():
    """Where the nearest end of an epoch would be that of the run."""
    recipe = Recipe(epochs=4, drops=(0.01, 0.99))
    assert rates(recipe, 2) == pytest.approx([0.1, 0.01, 0.01, 0.001])


def test_a_rate_need_not_fall():
    optimizer = Recipe(drops=()).optimizer(3)
    assert float(optimizer.learning_rate) == pytest.approx(0.1)


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"epochs": 1.5}, r"`epochs` must be a positive integer.*1\.5"),
        ({"image_size": 0}, r"`image_size` must be a positive integer.*=0"),
        ({"drops": 5}, r"`drops` must be a list.*drops=5"),
        ({"drops": (0.5, 0.3)}, r"`drops` must ascend.*\(0\.5, 0\.3\)"),
        ({"drops": (0.5, 0.5)}, r"`drops` must ascend"),
        ({"drops": (60,)}, r"`drops` must be .* above 0 and below 1.*drops=60"),
        ({"momentum": 1}, r"`momentum` must be .* at least 0 and below 1"),
        ({"weight_decay": -1}, r"`weight_decay` must be .* at least 0.*=-1"),
        ({"weight_decay": np.inf}, r"`weight_decay` must be a finite number"),
        ({"learning_rate": True}, r"`learning_rate` must be .* above 0.*True"),
        ({"augmentation": "mixup"}, r"`augmentation` must be one of.*mixup"),
    ],
    ids=str,
)
def test_bad_values(changes, text):
    with pytest.raises(ValueError, match=text):
        Recipe(**changes)


def test_recipes_can_be_printed():
    for make in RECIPES.values():
        recipe = make()
        assert repr(recipe).startswith("Recipe(epochs=")
        assert Recipe(**dataclasses.asdict(recipe)) == recipe
        assert recipe.augmentation in AUGMENTATIONS
