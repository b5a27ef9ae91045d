"""What each convolution becomes, so that least is lost at a given cost."""

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_tlgc.rewrite.converter import Converter
from keras_tlgc.rewrite.images import Images
from keras_tlgc.rewrite.progress import Track
from keras_tlgc.rewrite.projection import errors_of
from keras_tlgc.rewrite.rows import changed
from keras_tlgc.rewrite.rules import Choice
from keras_tlgc.rewrite.samples import Samples
from keras_tlgc.validation import one_of

# Attributes of `Row`; with `new_` before them they are what it costs then.
COSTS = ("multiply_adds", "params")
GROUPS = (1, 2, 4, 8, 16)
ALIGNED = 8  # Filters a group, of which runtimes like multiples,
FEWEST = 4  # unless fewer ranks than these are such.
TRIED = 16  # Ranks for each form and number of groups, at most.
KEPT = "the budget keeps it"


class Option(NamedTuple):
    """Something that a layer can become.

    Attributes:
        choice: `Choice`, or `None` to keep the layer.
        cost: integer, in the unit of the budget.
        error: float, the share of the outputs' variance that is lost.
        loss: float, how much that counts: the lost variance itself, of the
            outputs as a normalisation behind the layer scales them. By shares a
            low budget would ruin the layers on which a network rests.
    """

    choice: Choice | None
    cost: int
    error: float
    loss: float


class Plan(NamedTuple):
    """What a budget has chosen.

    Attributes:
        options: dict from the `id` of a layer to its `Option`.
        note: string, what the report says of it.
        curve: tuple of pairs, the share of the cost that other budgets leave,
            from the least on, and the variance lost then, as a share of that
            which the least loses.
    """

    options: dict[int, Option]
    note: str
    curve: tuple[tuple[float, float], ...]

    def choice(self, layer: keras.layers.Layer) -> Choice | str:
        """Return what a layer becomes, as `Rules` asks."""
        option = self.options.get(id(layer))
        if option is None:  # It is within a layer that is yet to be copied.
            return first_choice(layer)
        return option.choice or KEPT

    def note_in(self, converter: Converter) -> None:
        """Add what was expected to the rows of a report, and the note."""
        for i, layer in converter.replaced:
            error = self.options[id(layer)].error
            converter.rows[i] = converter.rows[i]._replace(expected_error=error)
        converter.notes.append(self.note)


def check_budget(
    budget: float, of: str, data: Any, given: dict[str, Any]
) -> None:
    """Raise a `ValueError` unless a budget can be used.

    Args:
        budget, of, data: see `convert`.
        given: dict of the arguments that a budget stands in for.
    """
    one_of("of", of, COSTS)
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


def first_choice(layer: keras.layers.Layer) -> Choice | str:
    """Return something that a layer can become, or why there is nothing."""
    found = candidates(layer)
    return found[0] if found else Choice("low_rank", 1, 1).why_not(layer)


def candidates(layer: keras.layers.Layer) -> list[Choice]:
    """Return all that a standard convolution can become."""
    tried = [
        Choice(conv, groups, rank)
        for conv in ("low_rank", "two_level", "group")
        for groups in GROUPS
        if conv == "low_rank" or groups > 1
        for rank in _ranks(layer, conv, groups)
    ]
    return [choice for choice in tried if not choice.why_not(layer)]


def _ranks(layer: keras.layers.Layer, conv: str, groups: int) -> list[int]:
    """Return numbers of coarse channels that make a layer smaller."""
    if conv == "group":
        return [1]
    one, two = (Choice(conv, groups, r).kernel_size(layer) for r in (1, 2))
    most = (math.prod(layer.kernel.shape) - 1 - one) // (two - one) + 1
    step = ALIGNED
    while step > 1 and most // step < FEWEST:
        step //= 2
    if most < step:
        return []
    return sorted(
        {step * round(x) for x in np.geomspace(1, most // step, TRIED)}
    )


def make_plan(
    survey: Converter,
    model: keras.Model,
    images: Images,
    budget: float,
    of: str,
    track: Track,
) -> Plan:
    """Choose what each convolution becomes.

    Args:
        survey: a converter that has replaced whatever can be.
        model: the model that it has made.
        images: the data that show what a choice loses.
        budget: float, the share of the original's cost.
        of: string, one of `COSTS`.
        track: see `convert`.

    Raises:
        ValueError: if the budget is less than what is left at least, or the
            cost of a layer is not known.
    """
    total = sum(getattr(row, of) or 0 for row in survey.rows)
    replaced = {i for i, _ in survey.replaced}
    fixed = sum(
        getattr(row, f"new_{of}") or 0
        for i, row in enumerate(survey.rows)
        if i not in replaced
    )
    costs = {id(old): _costs(survey, i, old, of) for i, old in survey.replaced}
    least = fixed + sum(min(cost.values()) for cost in costs.values())
    if least > budget * total:
        raise ValueError(
            f"`budget` must be at least {least / total:.3f}, the least share "
            f"of the {of} of this model's convolutions that its smallest forms "
            f"leave. Received: budget={budget}. Use a larger one, or select "
            "more layers by `where`."
        )
    originals = {id(copy): old for old, copy in survey.copies.values()}
    layers, options = [], []
    for key, samples in survey.fitter(model, images)[0].survey(track):
        old = originals[key]
        layers.append(id(old))
        options.append(_options(costs[id(old)], samples))
    chosen = least_loss(options, budget * total - fixed)
    share = (fixed + sum(option.cost for option in chosen)) / total
    path = [
        (fixed + sum(o.cost for o in some), sum(o.loss for o in some))
        for some in _ever_dearer(options, math.inf)
    ]
    most = path[0][1] or 1.0
    return Plan(
        dict(zip(layers, chosen, strict=True)),
        f"the convolutions have {share:.3f} of the original's {of}, of a "
        f"budget of {budget}",
        tuple((cost / total, loss / most) for cost, loss in path),
    )


def _costs(
    survey: Converter, index: int, layer: keras.layers.Layer, of: str
) -> dict[Choice | None, int]:
    """Return what a layer costs, by what it becomes."""
    row = survey.rows[index]
    if getattr(row, of) is None:
        raise ValueError(
            "A budget of multiply_adds needs a model whose inputs have a known "
            f"size. Received: the layer '{row.name}' in a model of unknown "
            "sizes. Pass of='params', or build the model for one size."
        )
    found: dict[Choice | None, int] = {None: getattr(row, of)}
    for choice in candidates(layer):
        found[choice] = getattr(changed(row, layer, choice), f"new_{of}")
    return found


def _options(costs: dict[Choice | None, int], samples: Samples) -> list[Option]:
    """Return what a layer can become, with what that loses."""
    kernel, moments = samples.kernel * samples.scale, samples.moments()
    power = float(np.sum(moments.targets)) or 1.0
    alike: dict[tuple[str, int], list[Choice]] = defaultdict(list)
    for choice in filter(None, costs):
        alike[choice.conv, choice.groups].append(choice)
    found = [Option(None, costs[None], 0.0, 0.0)]
    for (conv, groups), some in alike.items():
        ranks = [choice.coarse_channels for choice in some]
        lost = errors_of(kernel, groups, ranks, moments, conv)
        found += [
            Option(choice, costs[choice], one / power, one)
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
