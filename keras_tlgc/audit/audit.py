"""What a train step moves over a mesh, read from its compiled program."""

import math
from collections.abc import Callable

import keras

from keras_tlgc.audit.expect import (
    batch_shards,
    explained_rows,
    formula,
    hiding,
    model_axis,
)
from keras_tlgc.audit.report import Audit
from keras_tlgc.audit.rules import rule_warnings
from keras_tlgc.audit.step import Step, compile_network, compile_step
from keras_tlgc.distribution.guard import check_on_mesh
from keras_tlgc.sharding.per_shard import check_can_split
from keras_tlgc.validation import positive_int


def audit(model: keras.Model, batch_size: int, data=None) -> Audit:
    """List what the model's train step moves over the mesh.

    The step is the one that `model.fit` runs under the distribution the model
    was built under. On JAX it is compiled and nothing is executed. On PyTorch,
    where all processes must call this, it runs once, on zeros, and the model
    and its optimizer have their values back afterwards. What ran before or runs
    after makes no difference. Each collective is attributed to axes of the mesh
    and to layers, and compared with what the layers need:

    - a two-level layer gathers its coarse channels, `N r` for each output
      position, and scatters their gradients (section 3.2 of the paper);
    - a balanced layer adds up the mean of its groups, `m / N` channels for each
      input position, and their gradients;
    - a standard convolution or dense layer that is split by filters gathers its
      input and adds up its gradient;
    - one that is split by inputs adds up its outputs;
    - along the batch, gradients and statistics are added up.

    The model and the distribution can be any of Keras. The verdict is about the
    layers of this package and Keras' convolutions, whose needs are known, and
    under `GroupParallel` about all layers, if the model has none of which
    nothing is known, such as attention. What else moves, for other layers or
    for none that the compiler names, is listed as `"moved"`.

    Rules of the layout map that match nothing, outputs that they do not name,
    or arrays with other numbers of axes are findings. So are, on PyTorch, a
    step that fails and a trainable variable that gets no gradient.

    `print(audit(...))` shows the table, the totals and a verdict.

    Args:
        model: `keras.Model`, built and compiled under a
            `keras.distribution.ModelParallel` or `DataParallel` that is still
            set. On PyTorch it must be a `ModelParallel`. Inputs, outputs and
            losses may be several.
        batch_size: int, samples in a global batch. The mesh's batch axis must
            divide it.
        data: optional batch, `(x, y)` or `(x, y, sample_weight)`, of arrays.
            Only shapes and types are read. It is needed where the model does
            not tell them, as with sizes that are not fixed, a loss of your own
            or a subclass of `keras.Model`.

    Returns:
        An `Audit`; its `ok` is the verdict.

    Raises:
        ValueError: if the backend is neither JAX nor PyTorch with Keras 3.16,
            no distribution or, on PyTorch, no `ModelParallel` is set, the
            model is not compiled or was built outside of the distribution,
            the mesh cannot split the batch, a rule does not fit the outputs
            that it matches, or `data` is needed.

    Example:

    >>> from keras_tlgc.audit import audit
    >>> from keras_tlgc.distribution import model_parallel
    >>> distribution = model_parallel((1, 1))  # On more devices, (1, 4).
    >>> keras.distribution.set_distribution(distribution)
    >>> model = keras.Sequential(
    ...     [
    ...         keras.Input((8, 8, 16)),
    ...         keras_tlgc.layers.TwoLevelGroupConv2D(16, 3, groups=4),
    ...     ]
    ... )
    >>> model.compile("sgd", "mse")
    >>> audit(model, batch_size=4).ok
    True
    """
    distribution = _checked_distribution(batch_size)
    if not (model.built and model.compiled):
        raise ValueError(
            "`audit` needs a model that is built and compiled. Received: "
            f"'{model.name}', built={model.built}, compiled={model.compiled}. "
            "Call compile(), and build it."
        )
    if keras.backend.backend() == "torch":
        from keras_tlgc.audit.trace import trace_step

        step = trace_step(model, distribution, batch_size, data)
    else:
        check_on_mesh(model, distribution)
        step = compile_step(model, distribution, batch_size, data)
    return audit_step(step, batch_size)


def audit_network(
    build: Callable[[], keras.Model], distribution, batch_size: int
) -> Audit:
    """Audit a network. See `audit`. JAX allocates no weights for this.

    Args:
        build: function without arguments that returns a classifier; it is
            compiled for SGD with momentum.
        distribution: the `keras.distribution` to compile for.
        batch_size: int, samples in a global batch.

    Returns:
        An `Audit`.

    Raises:
        ValueError: if the mesh cannot split the batch, or a rule of the layout
            map does not fit a variable or an output that it matches.
    """
    with distribution.scope():
        _checked_distribution(batch_size)
        if keras.backend.backend() == "torch":
            model = build()
            model.compile(
                keras.optimizers.SGD(0.1, momentum=0.9),
                "sparse_categorical_crossentropy",
            )
            return audit(model, batch_size)
    return audit_step(
        compile_network(build, distribution, batch_size), batch_size
    )


def audit_step(step: Step, batch_size: int) -> Audit:
    """Return the `Audit` of a step that is compiled."""
    mesh = step.distribution.device_mesh
    sizes = dict(zip(mesh.axis_names, mesh.shape, strict=True))
    rows = explained_rows(step)
    held = [*step.trainable, *step.fixed]
    return Audit(
        mesh=sizes,
        model_axis=model_axis(step),
        batch_size=batch_size,
        rows=rows,
        formula=formula(step, rows),
        hiding=hiding(step, rows),
        warnings=[
            *step.findings,
            *rule_warnings(step.distribution, held, step.outputs),
        ],
        params=sum(math.prod(v.shape) for v in step.trainable),
        local_params=sum(math.prod(v.local_shape) for v in step.trainable),
        optimizer_bytes=sum(v.bytes for v in step.slots),
        local_optimizer_bytes=sum(v.local_bytes for v in step.slots),
        temporary_bytes=step.temporary_bytes,
        flops=step.flops,
        whole=[
            v.path
            for v in held
            if v.local_shape == v.shape and len(v.shape) > 0
        ],
        shards=max((v.bytes // v.local_bytes for v in held), default=1),
    )


def _checked_distribution(batch_size):
    check_can_split()
    distribution = keras.distribution.distribution()
    if distribution is None:
        raise ValueError(
            "`audit` needs a distribution. Received: none is set. "
            "Call keras.distribution.set_distribution before the model is "
            "made."
        )
    count = batch_shards(distribution)
    if positive_int("batch_size", batch_size) % count:
        raise ValueError(
            "The devices along the batch axis must divide the batch. "
            f"Received: batch_size={batch_size}, {count} devices along "
            f"'{distribution.batch_dim_name}'. Use a multiple of {count}."
        )
    return distribution
