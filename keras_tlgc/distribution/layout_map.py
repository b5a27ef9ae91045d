"""Which axis of which variable is split over the devices of a mesh."""

import re

import keras

from keras_tlgc._keras import maker_of, variable_asked_for
from keras_tlgc.distribution import guard
from keras_tlgc.distribution.choices import (
    CHANNELS,
    INPUTS,
    Choice,
    Choices,
    candidate,
    chosen,
    whole,
)
from keras_tlgc.distribution.processes import check_same_seed
from keras_tlgc.layers.answers import TRANSPOSED
from keras_tlgc.sharding.per_shard import axis_size, can_split, check_can_split
from keras_tlgc.variables import layouts, role_of


def get_layout_map(
    device_mesh: keras.distribution.DeviceMesh,
    model_parallel_dim_name: str = "model",
    data_parallel_dim_name: str = "batch",
) -> "GroupLayoutMap":
    """Return the layout map of a `GroupParallel`.

    It is for code that makes a `keras.distribution.ModelParallel` itself, which
    then splits variables as a `GroupParallel` over this mesh would, and checks
    what it checks.

    Args:
        device_mesh: `keras.distribution.DeviceMesh`, of 1 or more devices
            along each of its axes.
        model_parallel_dim_name: string, the axis of the mesh that groups are
            split over. Its size must divide the groups of each layer.
        data_parallel_dim_name: string, the axis of the mesh that batches are
            split over.

    Returns:
        A `GroupLayoutMap` for `keras.distribution.ModelParallel`.

    Raises:
        ValueError: if the mesh has no such axes, if the processes of a
            distributed run have different random states, or with PyTorch and a
            Keras before 3.16. It is raised later, when a layer is built, if a
            rule of yours does not fit a variable.

    Example:

    >>> mesh = keras.distribution.DeviceMesh(
    ...     (1, 1), ("batch", "model"), keras.distribution.list_devices()[:1]
    ... )
    >>> layout_map = keras_tlgc.distribution.get_layout_map(mesh)
    >>> layout_map["any/name/group_kernel"].axes
    (None, None, None, 'model')
    >>> layout_map["stem/kernel"] = (None, None, None, "model")
    """
    check_mesh(
        device_mesh,
        model_parallel_dim_name=model_parallel_dim_name,
        data_parallel_dim_name=data_parallel_dim_name,
    )
    if keras.backend.backend() == "torch":
        check_can_split()
        from keras_tlgc.sharding import torch_operations

        torch_operations.install()
    if can_split():
        check_same_seed()
    return GroupLayoutMap(device_mesh, model_parallel_dim_name)


def check_mesh(device_mesh, **names: str) -> None:
    """Raise a `ValueError` unless a mesh has two axes of the given names.

    Args:
        device_mesh: what should be a `keras.distribution.DeviceMesh`.
        **names: the names of the axes, by the arguments that they come from.
    """
    if not isinstance(device_mesh, keras.distribution.DeviceMesh):
        raise ValueError(
            "`device_mesh` must be a `keras.distribution.DeviceMesh`. "
            f"Received: device_mesh={device_mesh!r}. "
            "Make one from keras.distribution.list_devices()."
        )
    for name, axis in names.items():
        if axis not in device_mesh.axis_names:
            raise ValueError(
                f"`{name}` must be an axis of the mesh. Received: "
                f"{name}={axis!r}, and a mesh with the axes "
                f"{tuple(device_mesh.axis_names)}. Pass the name of an axis, "
                "or make a mesh with both axes (either may have size 1)."
            )
    if len(set(names.values())) == 1:
        raise ValueError(
            "The groups and the batch need an axis of the mesh each. Received: "
            f"{axis!r} for both. "
            "Make a mesh with two axes (either may have size 1)."
        )


class GroupLayoutMap(keras.distribution.LayoutMap):
    """The rules of a user, and what is chosen where no rule of theirs matches.

    As a mapping it holds the rules that were added to it. Like every layout
    map it is asked for paths; `layout_of` also sees shapes and layers.

    Args:
        device_mesh: `keras.distribution.DeviceMesh`.
        model_axis: string, the axis of the mesh that splits the model.
    """

    def __init__(self, device_mesh, model_axis="model"):
        super().__init__(device_mesh)
        self.model_axis = model_axis
        self.devices = axis_size(device_mesh, model_axis)
        # What was chosen, by path, and what is to be chosen if it is made.
        self.choices = Choices()
        self.plan = Choices()
        # Whether the last layer with so many output channels has split them.
        # The next layer with as many input channels most likely follows it.
        self._is_split: dict[int, bool] = {}
        self._has_split_kernel: dict[str, bool] = {}  # By a layer's path.
        guard.watch(self)

    def __getitem__(self, key):
        if (variable := variable_asked_for()) is not None:
            return self.layout_of(variable)
        if (layout := self.rule_for(key)) is not None:
            return layout
        if key in self.plan:
            return self._layout(self.plan[key].axes)
        for name, axes in layouts(self.model_axis).items():
            if re.fullmatch(f"(.*/)?{name}", key):
                return self._layout(axes)
        return None

    def rule_for(self, path: str) -> keras.distribution.TensorLayout | None:
        """Return the layout of the user's rule that matches a path, if any."""
        rules = matching_rules(self, path)  # Older Keras match parts of it.
        # Of several rules, Keras says that they are too many.
        key = rules[0] if len(rules) == 1 else path
        return super().__getitem__(key) if rules else None

    def layout_of(self, variable) -> keras.distribution.TensorLayout:
        """Return the layout of a variable that is being made.

        Args:
            variable: `keras.Variable`. Those of a layer must be asked for in
                the order in which the layer creates them: a bias stays whole
                if the kernel before it does. Layers must be asked for in the
                order in which they follow each other: a normalisation is split
                if the last layer with as many filters is.

        Returns:
            A `keras.distribution.TensorLayout` that fits the variable.

        Raises:
            ValueError: if a rule that was added does not fit the variable.
        """
        path, shape = variable.path, tuple(variable.shape)
        maker = maker_of(variable)
        choice = self.by_rule(path, shape) or self.plan.get(path)
        if choice is None or choice.shape != shape:
            choice = self._by_layer(maker, path, shape)
        if isinstance(maker, keras.layers.Layer):
            self._remember(maker, path, choice)
            self.choices[path] = choice
        return self._layout(choice.axes)

    def by_rule(self, path: str, shape) -> Choice | None:
        """Return what a rule of the user says about a variable, if any does.

        Raises:
            ValueError: if the rule does not fit the variable.
        """
        layout = self.rule_for(path)
        if layout is None:
            return None
        if not any(layout.axes):
            return whole(shape, "a rule of yours")
        self._check_fits(path, shape, layout.axes)
        return Choice(shape, tuple(layout.axes), "a rule of yours")

    def _by_layer(self, maker, path, shape):
        layer, _, name = path.rpartition("/")
        axis, what = candidate(maker, name, shape)
        if axis is None:
            return whole(shape, what)
        if what in (CHANNELS, INPUTS):
            # A number of channels that no layer has made comes from joining
            # split ones, or else from the inputs, or from layers that are not
            # known, as in a transformer: these are whole.
            joined = what == CHANNELS and any(self._is_split.values())
            if not self._is_split.get(shape[axis], joined):
                return whole(shape, "the channels before it are whole")
        if role_of(name).is_bias and not self._has_split_kernel.get(
            layer, True
        ):
            return whole(shape, "so is its kernel")
        return chosen(shape, axis, what, self.devices, self.model_axis)

    def _remember(self, maker, path, choice):
        layer, _, name = path.rpartition("/")
        role = role_of(name)
        makes_outputs = role.scales_outputs or not role.is_coarse
        if not (role.is_kernel and makes_outputs and choice.shape):
            return
        _, what = candidate(maker, name, choice.shape)
        self._has_split_kernel[layer] = choice.is_split
        filters = choice.shape[-1]
        if what == CHANNELS:
            filters *= choice.shape[-2]
        elif len(choice.shape) > 1 and isinstance(maker, TRANSPOSED):
            filters = choice.shape[-2]
        self._is_split[filters] = choice.is_split and what != INPUTS

    def _layout(self, axes):
        return keras.distribution.TensorLayout(axes, self.device_mesh)

    def _check_fits(self, path, shape, axes):
        fits = len(axes) == len(shape) and all(
            axis is None or size % axis_size(self.device_mesh, axis) == 0
            for size, axis in zip(shape, axes, strict=True)
        )
        if fits:
            return
        rule = matching_rules(self, path)[0]
        sizes = {
            axis: axis_size(self.device_mesh, axis) for axis in axes if axis
        }
        raise ValueError(
            "A rule of the layout map must have an entry for each axis of the "
            "variables that it matches, an axis of the mesh whose devices "
            "divide the variable's size there, or None. Received: the rule "
            f"{rule!r} = {axes}, for '{path}' of shape {shape} on a mesh with "
            f"the sizes {sizes}. Change its entries (None alone keeps the "
            "variable whole), or let it match fewer variables: end it with "
            "their names, as in '.*/my_head/kernel'."
        )


def matching_rules(layout_map, path: str) -> list[str]:
    """Return the rules of a layout map that decide on `path`, if any."""
    rules = list(layout_map)
    if path in rules:
        return [path]
    return [rule for rule in rules if re.fullmatch(rule, path)]
