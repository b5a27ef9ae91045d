"""The audit: the targets that a loss wants, and what cannot be audited."""

import keras
import numpy as np
import pytest
from audited import SPARSE
from meshes import ON_JAX, compiled, data_parallel, model_parallel

from keras_tlgc.audit import audit

pytestmark = ON_JAX


class Squares(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return keras.ops.mean(keras.ops.square(y_pred - y_true), axis=-1)


class OneHot(keras.losses.CategoricalCrossentropy):
    """Whose targets are not those of its class."""

    def call(self, y_true, y_pred):
        return super().call(
            keras.ops.one_hot(keras.ops.cast(y_true, "int32"), 10), y_pred
        )


def classifier(loss, outputs=lambda head, size: head):
    x = keras.Input((8,))
    head = keras.layers.Dense(10, activation="softmax", name="head")(x)
    size = keras.layers.Dense(1, name="size")(x)
    model = keras.Model(x, outputs(head, size))
    model.compile("sgd", loss)
    return model


def both(head, size):
    return [head, size]


def named(head, size):
    return {"u": head, "a": size}


KNOWN = {
    "object": (SPARSE,),
    "list of one": ([SPARSE],),
    "function": (keras.losses.sparse_categorical_crossentropy,),
    "name": ("SparseCategoricalCrossentropy",),
    "indices by another name": (
        keras.losses.CategoricalGeneralizedCrossEntropy(),
    ),
    "untrue name": (keras.losses.CategoricalCrossentropy(name="not_sparse"),),
    "list": ([SPARSE, "mse"], both),
    "names of layers": ({"size": "mse", "head": SPARSE}, both),
    "names of outputs": ({"u": SPARSE, "a": "mse"}, named),
    "one of two": ({"u": SPARSE}, named),
    "the same for both": ("mse", named),
    "binary": ("ce", lambda head, size: size),
}


@pytest.mark.parametrize("arguments", KNOWN.values(), ids=KNOWN)
def test_targets_are_those_of_the_loss(arguments):
    data_parallel(2)
    assert audit(classifier(*arguments), 8).ok


def test_no_targets():
    data_parallel(2)
    x = keras.Input((8,))
    layer = keras.layers.Dense(4, activity_regularizer="l2")
    model = keras.Model(x, layer(x))
    model.compile("sgd")
    assert audit(model, 8).ok


LIKE, INDICES = np.zeros((8, 10)), np.zeros(8, "int32")


UNKNOWN = {
    "class": (Squares(), LIKE),
    "class, misleading name": (Squares(name="sparse"), LIKE),
    "function": (lambda y, p: keras.losses.mean_squared_error(y, p), LIKE),
    "subclass": (OneHot(), INDICES),
    "ctc": (keras.losses.CTC(), None),
    "by the targets": ("crossentropy", INDICES),
}


@pytest.mark.parametrize(("loss", "targets"), UNKNOWN.values(), ids=UNKNOWN)
def test_unknown_targets_are_asked_for(loss, targets):
    data_parallel(2)
    model = classifier(loss)
    with pytest.raises(ValueError, match=r"Pass a batch as `data=\(x, y\)`"):
        audit(model, 8)
    if targets is not None:
        assert audit(model, 8, (np.zeros((8, 8), "float32"), targets)).ok


def test_targets_of_a_step_of_the_user_are_asked_for():
    class Own(keras.Model):
        def compute_loss(self, x, y, y_pred, sample_weight, training=True):
            return keras.ops.mean(SPARSE(y, y_pred))

    data_parallel(2)
    x = keras.Input((8,))
    model = Own(x, keras.layers.Dense(10, "softmax")(x))
    model.compile("sgd")
    with pytest.raises(ValueError, match="The targets of a batch must be kno"):
        audit(model, 8)


def test_bad_audits():
    model = compiled(
        keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    )
    with pytest.raises(ValueError, match="needs a distribution"):
        audit(model, 8)
    model_parallel(2, 2)
    with pytest.raises(ValueError, match="must be made under the distrib"):
        audit(model, 8)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="that is built and compiled"):
        audit(model, 8)
    with pytest.raises(ValueError, match="must divide the batch"):
        audit(compiled(model), 7)
    with pytest.raises(ValueError, match="`batch_size` must be a positive"):
        audit(model, 0)
    free = keras.Sequential(
        [
            keras.Input((None, None, 3)),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(2),
        ]
    )
    with pytest.raises(ValueError, match="sizes of a batch must be known"):
        audit(compiled(free), 8)
