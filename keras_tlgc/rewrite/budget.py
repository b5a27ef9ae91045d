"""What each convolution becomes, so that least is lost at a given cost."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_tlgc.rewrite.converter import Converter
from keras_tlgc.rewrite.images import Images
from keras_tlgc.rewrite.pricing import Unit, prices
from keras_tlgc.rewrite.progress import Track
from keras_tlgc.rewrite.projection import errors_of
from keras_tlgc.rewrite.rules import Choice
from keras_tlgc.rewrite.samples import Samples

KEPT = "the budget keeps it"


class Option(NamedTuple):
    """Something that a layer can become.

    Attributes:
        choice: `Choice`, or `None` to keep the layer.
        cost: float, in the unit of the budget.
        error: float, the share of the outputs' variance that is lost.
        loss: float, how much that counts: the lost variance itself, of the
            outputs as a normalisation behind the layer scales them, or else
            with a mean variance of 1. By shares a low budget would ruin the
            layers on which a network rests.
    """

    choice: Choice | None
    cost: float
    error: float
    loss: float


class Plan(NamedTuple):
    """What a budget has chosen.

    Attributes:
        options: dict from the `id` of a layer to its `Option`.
        first_choice: function that returns a choice for any other layer.
        note: string, what the report says of it.
        curve: tuple of pairs, the share of the cost that other budgets leave,
            from the least on, and the variance lost then, as a share of that
            which the least loses.
    """

    options: dict[int, Option]
    first_choice: Callable[[keras.layers.Layer], Choice | str]
    note: str
    curve: tuple[tuple[float, float], ...]

    def choice(self, layer: keras.layers.Layer) -> Choice | str:
        """Return what a layer becomes, as `Rules` asks."""
        option = self.options.get(id(layer))
        if option is None:  # It is within a layer that is yet to be copied.
            return self.first_choice(layer)
        return option.choice or KEPT

    def note_in(self, converter: Converter) -> None:
        """Add what was expected to the rows of a report, and the note."""
        for i, layer in converter.replaced:
            error = self.options[id(layer)].error
            converter.rows[i] = converter.rows[i]._replace(expected_error=error)
        converter.notes.append(self.note)


def check_budget(budget: float, data: Any, given: dict[str, Any]) -> None:
    """Raise a `ValueError` unless a budget can be used.

    Args:
        budget, data: see `convert`.
        given: dict of the arguments that a budget stands in for.
    """
    if not isinstance(budget, float) or not 0 < budget < 1:
        raise ValueError(
            "`budget` must be a number between 0 and 1, a share of the cost. "
            f"Received: budget={budget!r}. Pass one, such as 0.4."
        )
    more = [name for name, value in given.items() if value is not None]
    if more:
        raise ValueError(
            "`budget` chooses groups, form and coarse channels of each layer. "
            f"Received: budget={budget} with {', '.join(more)}. Leave out one."
        )
    if data is None:
        raise ValueError(
            "`budget` needs `data`, to measure what each layer would lose. "
            "Received: data=None. Pass some hundred inputs of the model."
        )


def make_plan(
    survey: Converter,
    model: keras.Model,
    images: Images,
    budget: float,
    unit: Unit,
    track: Track,
) -> Plan:
    """Choose what each convolution becomes.

    Args:
        survey: a converter that has replaced whatever can be.
        model: the model that it has made.
        images: the data that show what a choice loses.
        budget: float, the share of the original's cost.
        unit: what that cost is.
        track: see `convert`.

    Raises:
        ValueError: if the budget is less than what is left at least, or the
            cost of a layer is not known.
    """
    total, fixed, costs = prices(survey, unit, track)
    least = fixed + sum(min(cost.values()) for cost in costs.values())
    if least > budget * total:
        raise ValueError(
            f"`budget` must be at least {least / total:.3f}, the least share "
            f"of the {unit.of} of this model's convolutions that its smallest "
            f"forms leave. Received: budget={budget}. Use a larger one, or "
            "select more layers by `where`."
        )
    originals = {id(copy): old for old, copy in survey.copies.values()}
    layers, options = [], []
    for key, samples in survey.fitter(model, images)[0].survey(track):
        old = originals[key]
        layers.append(id(old))
        options.append(_options(costs[id(old)], samples))
    chosen = least_loss(options, budget * total - fixed)
    left = fixed + sum(option.cost for option in chosen)
    ms = f" ({total:.2f} ms)" if unit.of == "time" else ""
    path = [
        (fixed + sum(o.cost for o in some), sum(o.loss for o in some))
        for some in _ever_dearer(options, math.inf)
    ]
    most = path[0][1] or 1.0
    return Plan(
        dict(zip(layers, chosen, strict=True)),
        unit.first_choice,
        f"the convolutions have {left / total:.3f} of the original's "
        f"{unit.of}{ms}, of a budget of {budget}",
        tuple((cost / total, loss / most) for cost, loss in path),
    )


def _options(
    costs: dict[Choice | None, float], samples: Samples
) -> list[Option]:
    """Return what a layer can become, with what that loses."""
    kernel, moments = samples.kernel * samples.scale, samples.moments()
    power = float(np.sum(moments.targets)) or 1.0
    # Behind a normalisation outputs have a variance of about 1, so that the
    # losses of layers can be compared. Others have units of their own.
    unit = 1.0 if samples.has_norm else power / kernel.shape[-1]
    alike: dict[tuple[str, int], list[Choice]] = defaultdict(list)
    for choice in filter(None, costs):
        alike[choice.conv, choice.groups].append(choice)
    found = [Option(None, costs[None], 0.0, 0.0)]
    for (conv, groups), some in alike.items():
        ranks = [choice.coarse_channels for choice in some]
        lost = errors_of(kernel, groups, ranks, moments, conv)
        found += [
            Option(choice, costs[choice], one / power, one / unit)
            for choice, one in zip(some, lost, strict=True)
        ]
    return found


def least_loss(options: list[list[Option]], allowed: float) -> list[Option]:
    """Choose an option for each layer, with the least loss at a cost.

    Args:
        options: list of lists of `Option`, one for each layer.
        allowed: float, the sum of costs, at least that of the cheapest ones.
    """
    *_, chosen = _ever_dearer(options, allowed)
    return chosen


def _ever_dearer(
    options: list[list[Option]], allowed: float
) -> Iterator[list[Option]]:
    """Yield choices for all layers: the cheapest, then those of less loss.

    From the cheapest ones, this takes one step after the other: that which
    gains most for what it costs, among those that still fit. The steps go along
    the lower convex hull of each layer's options, in the order of their slopes.
    So until one no longer fits these are the solutions of the Lagrangian
    relaxation, which minimise `loss + multiplier * cost` for a falling
    multiplier and are best for the cost that they have; the steps after that
    use up what is left.
    """
    chosen = [min(some, key=lambda o: (o.cost, o.loss)) for some in options]
    spare = allowed - sum(option.cost for option in chosen)
    steps = [
        _best_step(now, some, spare)
        for now, some in zip(chosen, options, strict=True)
    ]
    while True:
        yield [*chosen]
        slopes = [step[0] if step else -math.inf for step in steps]
        i = int(np.argmax(slopes))
        step = steps[i]
        if step is None:
            return
        chosen[i] = step[1]
        spare = allowed - sum(option.cost for option in chosen)
        for j, (now, step) in enumerate(zip(chosen, steps, strict=True)):
            # Other layers' steps stay the best ones for as long as they fit.
            if j == i or (step and step[1].cost - now.cost > spare):
                steps[j] = _best_step(now, options[j], spare)


def _best_step(
    now: Option, options: list[Option], spare: float
) -> tuple[float, Option] | None:
    """Return what gains most for what it costs, if anything fits."""
    steps = [
        ((now.loss - o.loss) / (o.cost - now.cost), o)
        for o in options
        if 0 < o.cost - now.cost <= spare and o.loss < now.loss
    ]
    return max(steps, key=lambda step: step[0], default=None)
