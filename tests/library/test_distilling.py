"""`distill`: a lighter model trained with the original as its teacher."""

import keras
import numpy as np
import pytest
from helpers import random, to_numpy

import keras_tlgc
from keras_tlgc._keras import parts_of
from keras_tlgc.rewrite import OutputDistillation
from keras_tlgc.rewrite.distilling import activations_of_outputs


def classifier(activation="softmax"):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 4))
    x = keras.layers.Conv2D(8, 3, name="first")(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.ReLU()(x)
    x = keras.layers.Conv2D(16, 3, activation="relu", name="last")(x)
    x = keras.layers.Flatten()(x)
    return keras.Model(inputs, keras.layers.Dense(3, activation)(x))


def distance(model, teacher, x):
    return np.mean(
        (model.predict(x, verbose=0) - teacher.predict(x, verbose=0)) ** 2
    )


class Rates(keras.callbacks.Callback):
    """The rate behind each epoch."""

    def on_train_begin(self, logs=None):
        self.seen = []

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(to_numpy(self.model.optimizer.learning_rate))


@pytest.mark.once
def test_few_batches_have_a_lower_rate():
    teacher = classifier()
    model, _ = keras_tlgc.convert(teacher, 4)
    rates, x = Rates(), random(64, 6, 6, 4)
    options = {"batch_size": 8, "callbacks": [rates], "verbose": 0}
    keras_tlgc.distill(model, teacher, x, epochs=2, **options)
    np.testing.assert_allclose(rates.seen, [16 / 100 * 5e-4 / 2, 0], atol=1e-9)


def test_outputs_come_closer_and_the_teacher_stays_as_it_is():
    teacher = classifier()
    teacher.get_layer("first").trainable = False
    teacher.get_layer("last").bias.trainable = False
    flags = [one.trainable for one in [*parts_of(teacher), *teacher.variables]]
    model, _ = keras_tlgc.convert(teacher, 4)
    frozen = model.get_layer("first").get_weights()
    x = 3 * random(64, 6, 6, 4)
    before = distance(model, teacher, x)
    weights = teacher.get_weights()

    rates = Rates()
    keras_tlgc.distill(
        model,
        teacher,
        x,
        epochs=20,
        batch_size=8,
        callbacks=[rates],
        verbose=0,
    )

    assert distance(model, teacher, x) < 0.7 * before
    done = np.arange(1, 21) / 20  # A rate that stays takes the model away.
    np.testing.assert_allclose(
        rates.seen, 5e-4 * (1 + np.cos(np.pi * done)) / 2, atol=1e-9
    )
    for old, new in zip(weights, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    for old, new in zip(
        frozen, model.get_layer("first").get_weights(), strict=True
    ):
        np.testing.assert_array_equal(old, new)
    assert flags == [
        one.trainable for one in [*parts_of(teacher), *teacher.variables]
    ]


def test_the_loss_of_classes_is_that_of_logits():
    logits = random(2, 5, 3)
    teacher, student = (to_numpy(keras.ops.softmax(one)) for one in logits)
    expected = keras.distillation.LogitsDistillation(
        2.0,
        keras.losses.KLDivergence(),  # By name it takes no softmax.
    ).compute_loss(*logits)
    loss = OutputDistillation(["softmax"], 2.0)
    np.testing.assert_allclose(
        to_numpy(loss.compute_loss(teacher, student)),
        to_numpy(expected),
        rtol=1e-4,
    )


def test_the_loss_of_several_outputs_is_their_sum():
    linear, sigmoid = random(2, 4, 3), random(2, 4, 1) % 1
    loss = OutputDistillation(["linear", "sigmoid"])
    found = loss.compute_loss([linear[0], sigmoid[0]], [linear[1], sigmoid[1]])
    t, p = sigmoid
    entropy = -np.mean(t * np.log(p) + (1 - t) * np.log(1 - p))
    squared = np.mean((linear[0] - linear[1]) ** 2)
    np.testing.assert_allclose(to_numpy(found), squared + entropy, rtol=1e-4)


def test_what_outputs_come_from_is_found():
    inputs = keras.Input((4,))
    nested = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(2, "sigmoid")]
    )
    outputs = [
        keras.layers.Dense(3, "softmax")(inputs),
        keras.layers.Softmax()(inputs),
        keras.ops.softmax(inputs),
        keras.layers.Activation("softmax")(inputs),
        nested(inputs),
        keras.layers.Dense(3)(inputs),
        keras.layers.LayerNormalization()(inputs),
    ]
    assert activations_of_outputs(keras.Model(inputs, outputs)) == (
        ["softmax"] * 4 + ["sigmoid"] + ["linear"] * 2
    )


def test_labels_are_learnt_if_they_have_a_loss():
    teacher = classifier()
    model, _ = keras_tlgc.convert(teacher, 4)
    x, y = random(32, 6, 6, 4), np.arange(32) % 3
    keras_tlgc.distill(
        model,
        teacher,
        x,
        y,
        epochs=30,
        label_loss="sparse_categorical_crossentropy",
        label_weight=1.0,
        optimizer=keras.optimizers.Adam(0.01),
        verbose=0,
    )
    assert np.mean(model.predict(x, verbose=0).argmax(-1) == y) > 0.8


def test_what_cannot_be_distilled_is_refused():
    teacher = classifier()
    model, _ = keras_tlgc.convert(teacher, 4)
    x = random(2, 6, 6, 4)
    with pytest.raises(ValueError, match=r"share no weights.*clone_model"):
        keras_tlgc.distill(
            teacher, keras.Model(teacher.inputs, teacher.outputs), x
        )
    with pytest.raises(ValueError, match=r"Labels need a loss.*label_loss"):
        keras_tlgc.distill(model, teacher, x, np.zeros(2))

    class Subclassed(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match=r"`teacher` must be a functional"):
        keras_tlgc.distill(model, Subclassed(), x)
    other = keras.Sequential([keras.Input((6, 6, 4)), keras.layers.Flatten()])
    batches = ((x,) for _ in range(2))
    with pytest.raises(ValueError, match=r"must be known.*steps_per_epoch"):
        keras_tlgc.distill(model, teacher, batches, shuffle=False)
    with pytest.raises(ValueError, match="shapes are incompatible"):
        keras_tlgc.distill(model, other, x)
    assert other.trainable
