"""What the rules of a layout map match, and whether they fit it."""

import contextlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

from keras_tlgc._keras import layout_map_of
from keras_tlgc.audit.report import some
from keras_tlgc.distribution.layout_map import matching_rules


def rule_warnings(
    distribution, variables: Iterable[Any], outputs: Iterable[str]
) -> list[str]:
    """Report rules that match nothing, outputs, or variables of other ranks.

    Args:
        distribution: the `keras.distribution`.
        variables: the variables of a model, with `path` and `shape`.
        outputs: the paths by which Keras looks up layouts of outputs.
    """
    layout_map = layout_map_of(distribution)
    if layout_map is None:
        return []
    matched: dict[str, list[Any]] = {rule: [] for rule in layout_map}
    of_outputs: dict[str, list[str]] = {rule: [] for rule in layout_map}
    for variable in variables:
        for rule in matching_rules(layout_map, variable.path):
            matched[rule].append(variable)
    for path in dict.fromkeys(outputs):
        for rule in matching_rules(layout_map, path):
            of_outputs[rule].append(path)
    return [
        f"The rule {rule!r} of the layout map {fault}"
        for rule, layout in layout_map.items()
        for fault in _faults(rule, layout.axes, matched[rule], of_outputs[rule])
    ]


def _faults(rule, axes, variables, outputs):
    if not variables and not outputs:
        yield (
            "matches no variable and no output. It must match a whole path, "
            "as 'block/conv/kernel'."
        )
    if outputs and not re.search(r"\boutput\b", rule):  # It was not meant.
        alone = "" if variables else " and no variable"
        yield (
            f"matches outputs of layers{alone}: {some(outputs)}. End it with "
            "the names of variables, as in '.*/(gamma|beta)'."
        )
    others = [v for v in variables if any(axes) and len(v.shape) != len(axes)]
    if others:
        found = [f"{v.path} of shape {tuple(v.shape)}" for v in others]
        yield (
            f"must have an entry for each axis of what it matches. It has "
            f"{tuple(axes)}, which Keras counts from the first axis, for "
            f"{some(found)}."
        )


@contextlib.contextmanager
def asked_outputs(distribution) -> Iterator[list[str]]:
    """List the paths of outputs that Keras looks up while the block runs.

    Raises:
        ValueError: if JAX cannot lay out the outputs that a rule matches.
    """
    found: list[str] = []
    if distribution is None:
        yield found
        return
    ask = distribution.get_tensor_layout

    def asking(path):
        if path.endswith("/output"):
            found.append(path)
        return ask(path)

    distribution.get_tensor_layout = asking
    try:
        yield found
    except (ValueError, IndexError) as error:
        layout = ask(found[-1]) if found else None
        if layout is None or "sharding" not in str(error):
            raise
        rules = matching_rules(layout_map_of(distribution), found[-1])
        raise ValueError(
            "A rule of the layout map must have an entry for each axis of the "
            f"outputs that it matches. Received: the rule {rules[0]!r} = "
            f"{tuple(layout.axes)}, for '{found[-1]}'. If it is meant for "
            "variables, end it with their names, as in '.*/(gamma|beta)'."
        ) from error
    finally:
        del distribution.get_tensor_layout
