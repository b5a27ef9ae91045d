"""Models rewritten with group convolutions or those of low rank."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras

from keras_tlgc.graphs import is_graph
from keras_tlgc.rewrite.budget import check_budget, make_plan
from keras_tlgc.rewrite.converter import Converter
from keras_tlgc.rewrite.images import Images, scorer
from keras_tlgc.rewrite.pricing import OF_ROWS, Runtime, Unit
from keras_tlgc.rewrite.progress import (
    BUDGETED,
    PHASES,
    PRICED,
    Track,
    bars,
)
from keras_tlgc.rewrite.report import Report
from keras_tlgc.rewrite.rules import Rules, heads_of, selector
from keras_tlgc.validation import one_of


class Conversion(NamedTuple):
    """What `convert` returns: the new model, and what was done."""

    model: keras.Model
    report: Report


def convert(
    model: keras.Model,
    groups: int | Callable[[int, int], int] | None = None,
    conv: str | None = None,
    coarse_channels: int | None = None,
    where: str | Callable[[keras.layers.Layer], bool] | None = None,
    weights: str = "project",
    data: Any = None,
    evaluate: Any = None,
    budget: float | None = None,
    of: str | None = None,
    mesh: Any = None,
    runtime: Runtime | None = None,
    track: Track | None = None,
    verbose: str | int = "auto",
    dense: bool = False,
) -> Conversion:
    """Turn a model's convolutions into two-level group convolutions.

    Standard convolutions (`keras.layers.Conv1D`, `2D` and `3D`) become
    `TwoLevelGroupConv{1,2,3}D` of the same name and arguments where `groups`
    divides their input channels and filters and the result is smaller;
    everything else stays as it is. Convolutions within nested models and
    `TimeDistributed` are converted too. So are those within composite layers,
    such as the blocks of KerasHub and KerasCV: such a layer is replaced by a
    functional model of its name if its `call` can be written out as one. The
    report says why a convolution was kept. With `conv="group"` they become
    `GroupConv{1,2,3}D`, with `conv="balanced"` `BalancedGroupConv{1,2,3}D`, and
    with `conv="low_rank"` `LowRankConv{1,2,3}D`, whose groups need not divide
    the filters.

    Args:
        model: functional or Sequential `keras.Model`, built, or a KerasHub
            task, whose backbone is converted. It is left as it is. The result
            shares no weights with it, only your own functions, initializers,
            regularizers and constraints.
        groups: integer N, or a function of input channels and filters that
            returns it for each layer, such as `largest_divisor(8)`. Where the
            function returns 1, the layer is kept. The integer 1 is for
            `conv="low_rank"` only: convolutions of plain low rank. Either this
            or `budget` is needed.
        conv: `"two_level"` (the default), `"group"` for one level,
            `"low_rank"` or `"balanced"`.
        coarse_channels: integer r, the coarse channels of each group: 1 if not
            given.
        where: selects what to convert: a regular expression that is searched in
            each layer's path (the names of the models and layers around it and
            its own name, joined by `/`), or a function of the layer that
            returns a bool. By default everything is selected.
        weights: `"project"` sets the kernels to those closest to the trained
            ones (`project_kernel`); `"random"` starts them anew, from the
            layer's `kernel_initializer`, or from `"glorot_uniform"` if that
            initializer cannot make the new shapes, as with `Constant(array)`.
            Everything else that layers hold is kept either way: biases, the
            weights of activations, the states of random seeds, and what is
            frozen.
        data: optional inputs of the model, without labels: what its `predict`
            takes, such as an array, a `tf.data.Dataset`, a `PyDataset` or a
            loader of PyTorch, whose labels are ignored. With it the new layers
            are fitted one after the other, so that what each makes of its
            inputs in the new network comes closest to the original's outputs
            before the activation. A few hundred images will do, drawn by
            chance: the first ones of a sorted data set show few classes. All of
            them are held in memory. A fifth is held out, to measure what is
            lost.
        evaluate: optional function of a model that returns a number, such as
            its accuracy, or the labels of `data`: an array of integers, for the
            accuracy on the data held out. The report has the number before and
            after.
        budget: optional number between 0 and 1, instead of `groups`, `conv` and
            `coarse_channels`: the share of the original's cost that all
            convolutions together may have, those included that nothing can
            replace. Form, groups and coarse channels of each layer, or that it
            is kept, are then chosen so that the variance that all layers'
            outputs lose, measured on `data` in the original network, is least.
        of: what the budget is a share of: the sum of the report's
            `"multiply_adds"` (the default) or of its `"params"`, kernels and
            biases; the `"bytes"` of the weights, in the smallest form that
            `deploy` can write; the `"time"` of each convolution by itself, for
            one input, in the fastest; or what a train step for one input
            exchanges over the devices of a mesh (`"exchange"`), in entries.
            With `"time"` a layer becomes nothing that is not at least 5% faster
            than it is.
        mesh: optional, for the devices that the new model is to be divided
            over: a `keras.distribution.DeviceMesh` or its sizes, such as
            `(1, 4)`, of which the last one is the model axis. The devices there
            divide the groups of all layers. `of="exchange"` needs it.
        runtime: optional function, for `of="time"`, of a Keras model of one
            layer that returns what is timed: a function without arguments that
            runs the model once, on one input. By default that is the model's
            `predict_on_batch`, on the backend at hand, and
            `keras_tlgc.lab.exported.in_onnxruntime` runs it there, on one
            thread.
        track: function that shows progress instead of `verbose`, such as
            `tqdm.tqdm` or `rich.progress.track`. It is called with the list
            of each phase's layers, and must return an iterable over that list:
            with a `budget`, those whose costs are found, unless the report
            counts them, and those whose losses are measured; then those to be
            copied, those whose weights are to be set and, with `data`, those to
            be fitted.
        dense: whether `keras.layers.Dense` layers are converted too, to
            `GroupDense`, `TwoLevelGroupDense` or `LowRankDense`: the
            feed-forward parts of transformers, mixers and ConvNeXt. One that
            makes the model's outputs, as a classifier does, is kept unless
            `where` is given and selects it.
        verbose: `"auto"`, 0, 1 or 2: 0 is silent, 1 shows a progress bar for
            each of these lists, and 2 prints a line when each is done.
            `"auto"` is 0 for models of at most 50 layers and 10 million
            parameters; for others 1 in a terminal or notebook, and 2 elsewhere.

    Returns:
        A pair `(model, report)`: the new model, not compiled, with the same
        inputs, outputs and names, and a `Report` with a row for each
        convolution, which `print` shows as a table.

    Raises:
        ValueError: if an argument is out of its range, the model is not
            functional or Sequential or is not built, a layer cannot be copied,
            a kernel has entries that are not finite, nothing can be converted,
            there is `data` that the model cannot be fitted on, or the `budget`
            is less than what the smallest forms of all layers cost.

    Example:

    >>> model = keras.Sequential(
    ...     [
    ...         keras.Input((8, 8, 3)),
    ...         keras.layers.Conv2D(16, 3, name="stem"),
    ...         keras.layers.Conv2D(32, 3, name="last"),
    ...     ]
    ... )
    >>> lighter, report = keras_tlgc.convert(model, groups=4)
    >>> print(f"{len(report.converted)} of {len(report.rows)} converted")
    1 of 2 converted
    >>> print(f"{report.params:,} -> {report.new_params:,} parameters")
    5,088 -> 1,904 parameters
    >>> report.kept[0].name, report.kept[0].reason
    ('stem', '4 groups do not divide 3 channels, 16 filters')
    """
    one_of("weights", weights, ["project", "random"])
    if data is not None and weights != "project":
        raise ValueError(
            "`weights` must be 'project' with `data`, which improves on what "
            f"is projected. Received: weights={weights!r}. Leave out one."
        )
    unit = Unit.make(of, mesh, runtime)
    if budget is None:
        of_budget = {"of": of, "mesh": mesh, "runtime": runtime}
        without = [name for name, x in of_budget.items() if x is not None]
        if without:
            raise ValueError(
                f"`{without[0]}` must come with `budget`, for which layers are "
                f"chosen. Received: {', '.join(without)} without `budget`. "
                "Leave it out, or pass a budget, such as 0.4, instead of "
                "`groups`."
            )
        rules = Rules.make(
            groups,
            "two_level" if conv is None else conv,
            1 if coarse_channels is None else coarse_channels,
            where,
        )
    else:
        given = {
            "groups": groups,
            "conv": conv,
            "coarse_channels": coarse_channels,
        }
        check_budget(budget, data, given)
        rules = Rules(unit.first_choice, selector(where))
    if not is_graph(model):
        raise ValueError(
            "The model must be functional or Sequential, and built. Received: "
            f"'{getattr(model, 'name', model)}', {type(model).__name__}, "
            f"built={getattr(model, 'built', None)}. Call it on data first; "
            "of a subclassed model, convert "
            "`keras.Model(inputs, model.call(inputs))`."
        )
    if dense:
        heads = heads_of(model) if where is None else frozenset()
        rules = rules._replace(dense=True, heads=heads)
    phases: tuple[str, ...] = PHASES
    if budget is not None:
        phases = BUDGETED if unit.of in OF_ROWS else PRICED
    track = track or bars(verbose, model, phases)
    images = None if data is None else Images(model, data)
    score = scorer(evaluate, images)
    converter = Converter(rules, track if budget is None else iter, weights)
    new = converter.whole(model)
    if not converter.replaced:
        reasons = sorted({row.reason for row in converter.rows})
        raise ValueError(
            "There must be a convolution to convert. Received: the model "
            f"'{model.name}' with {len(converter.rows)} convolutions, "
            f"none of which can be converted{': ' if reasons else ''}"
            f"{'; '.join(reasons)}. Choose other `groups` or `where`."
        )
    plan = None
    if budget is not None and images is not None:
        plan = make_plan(converter, new, images, budget, unit, track)
        rules = rules._replace(choice=plan.choice)
        converter = Converter(rules, track, weights, converter.written)
        new = converter.whole(model)
    converter.set_weights()
    if images is not None:
        converter.fit(new, images)
    converter.note_what_is_lost()
    if plan is not None:
        plan.note_in(converter)
    return Conversion(
        new,
        Report(
            tuple(converter.rows),
            model.count_params(),
            new.count_params(),
            tuple(converter.notes),
            score(model),
            score(new),
            () if plan is None else plan.curve,
        ),
    )
