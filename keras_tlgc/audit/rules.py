"""What the rules of a layout map match, and whether they fit it."""

import contextlib
import functools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras

from keras_tlgc._keras import layout_map_of
from keras_tlgc.audit.report import some
from keras_tlgc.distribution.layout_map import GroupLayoutMap, matching_rules
from keras_tlgc.sharding.per_shard import axes_of, axis_size


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
    rules_for = _matcher(layout_map)
    matched: dict[str, list[Any]] = {rule: [] for rule in layout_map}
    of_outputs: dict[str, list[str]] = {rule: [] for rule in layout_map}
    for variable in variables:
        for rule in rules_for(variable.path):
            matched[rule].append(variable)
    for path in dict.fromkeys(outputs):
        for rule in rules_for(path):
            of_outputs[rule].append(path)
    return [
        f"The rule {rule!r} of the layout map {fault}"
        for rule, layout in layout_map.items()
        for fault in _faults(rule, layout.axes, matched[rule], of_outputs[rule])
    ]


def _matcher(layout_map) -> Callable[[str], list[str]]:
    """Return the function that tells which rules decide on a path."""
    if isinstance(layout_map, GroupLayoutMap):
        return functools.partial(matching_rules, layout_map)
    # Before 3.15 a rule of Keras need not match the whole path, so it is Keras
    # that is asked, about each rule alone.
    alone = {}
    for rule, layout in layout_map.items():
        alone[rule] = keras.distribution.LayoutMap(layout_map.device_mesh)
        alone[rule][rule] = layout

    def rules_for(path):
        if path in alone:
            return [path]
        return [rule for rule, one in alone.items() if one[path] is not None]

    return rules_for


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


def checked_layout(distribution, variable) -> Any:
    """Return the layout of a variable that has no value.

    Raises:
        ValueError: if JAX cannot lay the variable out in this way.
    """
    layout, shape = distribution.get_variable_layout(variable), variable.shape
    mesh = distribution.device_mesh
    axes = axes_of(layout)
    sizes = [axis_size(mesh, axis) if axis else 1 for axis in axes]
    if len(axes) > len(shape) or any(
        size % n for size, n in zip(shape, sizes, strict=False)
    ):
        rules = _matcher(layout_map_of(distribution))(variable.path)
        raise ValueError(
            "A rule of the layout map must have an entry for each axis of the "
            "variables that it matches, an axis of the mesh whose devices "
            f"divide the variable's size there, or None. Received: the rule "
            f"{rules[0]!r} = {axes}, for '{variable.path}' of shape "
            f"{tuple(shape)} on the mesh {tuple(mesh.shape)}. Change its "
            "entries, or let it match fewer variables."
        )
    return layout


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
    except (ValueError, RuntimeError) as error:  # As Keras has it.
        layout = ask(found[-1]) if found else None
        if layout is None or "sharding" not in str(error):
            raise
        [rule] = _matcher(layout_map_of(distribution))(found[-1])
        raise ValueError(
            "A rule of the layout map must have an entry for each axis of the "
            f"outputs that it matches. Received: the rule {rule!r} = "
            f"{tuple(layout.axes)}, for '{found[-1]}'. If it is meant for "
            "variables, end it with their names, as in '.*/(gamma|beta)'."
        ) from error
    finally:
        del distribution.get_tensor_layout
