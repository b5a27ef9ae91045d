"""A batch that a model takes: shapes and types, told from its losses."""

import keras
from keras import tree

# Losses of Keras whose targets are the indices of classes, and losses whose
# targets have a shape that no output tells. The targets of all others are like
# the outputs.
INDEX_LOSSES = (
    keras.losses.sparse_categorical_crossentropy,
    keras.losses.categorical_generalized_cross_entropy,
    keras.losses.circle,
)
OPEN_LOSSES = (keras.losses.ctc,)
# The `call` that `Loss` objects of Keras inherit. It calls their function.
LOSS_OF_FUNCTION = keras.losses.MeanSquaredError.call


def made_up_data(model, batch_size):
    """Return the shapes and types of a batch that the model takes."""
    if not (getattr(model, "inputs", None) and getattr(model, "outputs", None)):
        raise ValueError(
            "The shapes of a batch are taken from the model's inputs and "
            f"outputs. Received: a {type(model).__name__} without them. "
            "Pass a batch as `data=(x, y)`."
        )
    inputs, outputs = model.inputs[0], model.outputs[0]
    if not isinstance(model, keras.Sequential):
        inputs, outputs = model.input, model.output  # With their structure.
    x, outputs = tree.map_structure(
        lambda tensor: _made_up(tensor, batch_size), (inputs, outputs)
    )
    if model.loss is None:
        if not _has_keras_step(model):
            raise ValueError(_unknown_targets(model.loss))
        return x, None  # What `add_loss` adds needs no targets.
    y = tree.map_structure_up_to(
        outputs, _targets, outputs, _losses(model, outputs)
    )
    return x, y


def _made_up(tensor, batch_size):
    shape = tuple(tensor.shape)[1:]
    if None in shape:
        raise ValueError(
            "The sizes of a batch must be known. Received: a model with "
            f"the shape {tuple(tensor.shape)}. Pass a batch as `data`, or "
            "build the model with a fixed input shape."
        )
    return keras.KerasTensor((batch_size, *shape), tensor.dtype)


def _has_keras_step(model):
    return all(
        getattr(type(model), name) is getattr(keras.Model, name)
        for name in ("train_step", "compute_loss")
    )


def _losses(model, outputs):
    """Return the loss of each output, as `compile` assigns them."""
    loss = model.loss
    if isinstance(loss, dict):
        if isinstance(outputs, dict):
            return {name: loss.get(name) for name in outputs}
        loss = [loss.get(name) for name in getattr(model, "output_names", ())]
    count = len(tree.flatten(outputs))
    if isinstance(loss, (list, tuple)) and len(loss) == count:
        return tree.pack_sequence_as(outputs, loss)
    return tree.map_structure(lambda _: loss, outputs)


def _targets(output, loss):
    """Return the shape and type of the targets of one or several losses."""
    kinds = {_kind(part, output) for part in tree.flatten(loss)}
    if kinds == {"like the output"}:
        return output
    if kinds == {"indices"}:
        return keras.KerasTensor(output.shape[:-1], "int32")
    raise ValueError(_unknown_targets(loss))


def _unknown_targets(loss):
    return (
        "The targets of a batch must be known: the indices of classes, or "
        f"arrays like the outputs. Received: loss={loss!r}, which does not "
        "tell. Pass a batch as `data=(x, y)`, of which only shapes and types "
        "are read."
    )


def _kind(loss, output):
    """Tell from a loss what its targets for an output look like."""
    if str(loss).lower() in ("crossentropy", "ce"):
        # Keras then chooses a loss by the targets.
        return "like the output" if output.shape[-1] == 1 else "unknown"
    loss = keras.losses.get(loss)
    function = getattr(loss, "fn", loss)
    if loss is not function and type(loss).call is not LOSS_OF_FUNCTION:
        return "unknown"
    if function in INDEX_LOSSES:
        return "indices"
    known = [v for v in vars(keras.losses).values() if v not in OPEN_LOSSES]
    # Without a loss nothing is compared.
    is_known = function is None or function in known
    return "like the output" if is_known else "unknown"
