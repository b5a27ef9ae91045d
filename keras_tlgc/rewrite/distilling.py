"""Training of a lighter model with the original as its teacher."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops
from keras.distillation import DistillationLoss, Distiller

from keras_tlgc._keras import parts_of
from keras_tlgc.graphs import graph_nodes, is_graph
from keras_tlgc.types import Tensor

RATE = 5e-4  # That of the first batch.
ENOUGH = 100  # Batches: with fewer the rate is lower in proportion.
SMALLEST = 1e-7  # As in Keras' losses: a probability of 0 has no logarithm.


def distill(
    model: keras.Model,
    teacher: keras.Model,
    x: Any,
    y: Any = None,
    epochs: int = 1,
    loss: DistillationLoss | None = None,
    label_loss: Any = None,
    label_weight: float = 0.5,
    optimizer: Any = None,
    **options: Any,
) -> keras.callbacks.History:
    """Train a model to give the outputs of another one, its teacher.

    For what `keras_tlgc.convert` returns, with the original as teacher. No
    labels are needed. This is `keras.distillation.Distiller` with a loss that
    suits the outputs.

    Args:
        model: functional or Sequential `keras.Model`, which is trained.
        teacher: another one of the same inputs and outputs. It is left as it
            is, and runs as in inference.
        x: what `model.fit` takes: inputs, or batches of them from a
            `tf.data.Dataset`, `PyDataset` or loader of PyTorch, which may have
            labels.
        y: optional labels, if `x` is an array.
        epochs: int, how often each input is seen.
        loss: optional `keras.distillation.DistillationLoss` of the outputs, or
            a list of these. By default `OutputDistillation.between(teacher)`.
        label_loss: optional loss of labels and the model's outputs, such as
            `"sparse_categorical_crossentropy"`. Without it labels are ignored.
        label_weight: float from 0 to 1, the weight of `label_loss`; that of the
            teacher's is the rest.
        optimizer: optional optimizer. The default is Adam, whose rate falls
            from 5e-4 along half a cosine, to zero with the last batch. For
            fewer than 100 batches it is lower in proportion.
        **options: more arguments of `keras.Model.fit`, such as `batch_size`,
            `validation_data` and `callbacks`.

    Returns:
        The `History` of `fit`, with `loss`, `distillation_loss` and
        `student_loss`, which is that of labels.

    Raises:
        ValueError: if a model is not functional or Sequential, the two share
            weights, there are labels without `label_loss`, the inputs or
            outputs of the two differ, or the number of batches is unknown and
            there is no `optimizer`.

    Example:

    >>> inputs = keras.Input((8, 8, 3))
    >>> x = keras.layers.Conv2D(16, 3)(inputs)
    >>> x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(32, 3)(x))
    >>> model = keras.Model(inputs, keras.layers.Dense(5, "softmax")(x))
    >>> lighter, report = keras_tlgc.convert(model, groups=4)
    >>> images = np.random.rand(64, 8, 8, 3)
    >>> history = keras_tlgc.distill(lighter, model, images, verbose=0)
    >>> len(history.history["loss"])
    1
    """
    _check(model, teacher, y, label_loss)
    callbacks = list(options.pop("callbacks", None) or [])
    if optimizer is None:
        rate = keras.optimizers.schedules.CosineDecay(RATE, decay_steps=1)
        optimizer = keras.optimizers.Adam(rate)
        callbacks.append(_ToTheEnd(rate))
    with _as_it_is(teacher):
        distiller = Distiller(
            teacher,
            model,
            OutputDistillation.between(teacher) if loss is None else loss,
            student_loss_weight=0.0 if label_loss is None else label_weight,
        )
        # Without labels Keras wants a loss, and does not call it.
        distiller.compile(optimizer, loss=label_loss or "mse")
        return distiller.fit(
            x, y, epochs=epochs, callbacks=callbacks, **options
        )


class _ToTheEnd(keras.callbacks.Callback):
    """Lets a rate fall until the last batch, whose number `fit` knows.

    A converted model is close to its teacher. At a rate that stays as it is,
    one epoch takes it further away.
    """

    def __init__(self, rate: keras.optimizers.schedules.CosineDecay) -> None:
        super().__init__()
        self.rate = rate

    def on_train_begin(self, logs: Any = None) -> None:
        batches = self.params["steps"]
        if batches is None:
            raise ValueError(
                "The rate of the default optimizer falls until the last batch, "
                "so the number of batches must be known. Received: data "
                "without a length. Pass `steps_per_epoch`, or an `optimizer`."
            )
        steps = batches * self.params["epochs"]
        self.rate.decay_steps = steps
        # Adam's first steps are as long as the rate, whatever the gradients.
        self.rate.initial_learning_rate = RATE * min(1.0, steps / ENOUGH)


class OutputDistillation(DistillationLoss):
    """How far the outputs of a model are from those of its teacher.

    Of outputs behind a softmax it is the Kullback-Leibler divergence of both
    distributions at a temperature T, times T^2 (Hinton, Vinyals, Dean 2015);
    behind a sigmoid the cross-entropy; of others the mean squared difference.
    `keras.distillation.LogitsDistillation` takes logits alone.

    Args:
        activations: list of `"softmax"`, `"sigmoid"` or `"linear"`, what each
            output comes from.
        temperature: positive float T.
    """

    def __init__(
        self, activations: list[str], temperature: float = 3.0
    ) -> None:
        self.activations = activations
        self.temperature = temperature

    @classmethod
    def between(
        cls, teacher: keras.Model, temperature: float = 3.0
    ) -> "OutputDistillation":
        """Return the loss for the outputs of a model."""
        return cls(activations_of_outputs(teacher), temperature)

    def compute_loss(
        self, teacher_outputs: Any, student_outputs: Any, **kwargs: Any
    ) -> Tensor:
        """Return the sum of the losses of all outputs, a scalar."""
        found, expected = (
            [ops.cast(one, "float32") for one in keras.tree.flatten(outputs)]
            for outputs in (student_outputs, teacher_outputs)
        )
        outputs = zip(self.activations, expected, found, strict=True)
        return sum(ops.mean(self._loss(*output)) for output in outputs)

    def _loss(self, activation: str, target: Tensor, found: Tensor) -> Tensor:
        if activation == "softmax":
            target, found = (
                ops.softmax(_log(values) / self.temperature)
                for values in (target, found)
            )
            loss = keras.losses.kl_divergence(target, found)
            return loss * self.temperature**2
        if activation == "sigmoid":
            return keras.losses.binary_crossentropy(target, found)
        return keras.losses.mean_squared_error(target, found)


def _log(values: Tensor) -> Tensor:
    return ops.log(ops.maximum(values, SMALLEST))


def activations_of_outputs(model: keras.Model) -> list[str]:
    """Return for each output of a model whether it is behind a softmax.

    Returns:
        A list of `"softmax"`, `"sigmoid"` or, for all else, `"linear"`.
    """
    makers = {
        id(tensor): (node.operation, index)
        for node in graph_nodes(model)
        for index, tensor in enumerate(node.output_tensors)
    }
    return [
        _activation(*makers[id(tensor)])
        for tensor in keras.tree.flatten(model.outputs)
    ]


def _activation(operation: keras.Operation, index: int) -> str:
    if is_graph(operation):
        return activations_of_outputs(operation)[index]
    function = getattr(operation, "activation", operation)
    # Layers and operations are called like the function that they are.
    name = getattr(function, "__name__", type(function).__name__).lower()
    return name if name in ("softmax", "sigmoid") else "linear"


@contextlib.contextmanager
def _as_it_is(teacher: keras.Model) -> Iterator[None]:
    """Undo what a `Distiller` freezes."""
    parts = [(part, part.trainable) for part in parts_of(teacher)]
    variables = [(one, one.trainable) for one in teacher.variables]
    try:
        yield
    finally:
        # What a layer is set to holds for all within, until they are set.
        for one, trainable in [*parts, *variables]:
            one.trainable = trainable


def _check(
    model: keras.Model, teacher: keras.Model, y: Any, label_loss: Any
) -> None:
    for name, one in (("model", model), ("teacher", teacher)):
        if not is_graph(one):
            raise ValueError(
                f"`{name}` must be a functional or Sequential model, and "
                f"built. Received: {type(one).__name__}. Call it on data, or "
                "write `keras.Model(inputs, model.call(inputs))`."
            )
    if {id(v) for v in model.variables} & {id(v) for v in teacher.variables}:
        raise ValueError(
            "The model and its teacher must share no weights. Received: "
            f"'{model.name}' and '{teacher.name}', which do. Take what "
            "`keras_tlgc.convert` returns, or `keras.models.clone_model`."
        )
    if y is not None and label_loss is None:
        raise ValueError(
            "Labels need a loss. Received: y, and label_loss=None. Pass "
            "label_loss, such as 'sparse_categorical_crossentropy', or leave "
            "y out."
        )
