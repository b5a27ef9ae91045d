"""Which axis of which variable is split over the devices of a mesh."""

import re

import keras

from keras_tlgc.distribution import guard

# Rules are regular expressions that must match the whole path of a variable,
# "<layers>/<name>". Keras matches them against "<layers>/output" as well, and
# would split that tensor: so each rule ends with the names it means.
#
# Variables of our layers and of normalisations, whatever the layer's name:
#     group_kernel          (kh, kw, m / N, n)     groups along n
#     restriction_kernel    (kh, kw, m / N, N r)   groups along N r
#     coarse_kernel         (N r, n)               groups along n
#     group_bias, gamma...  (n,)
# Variables of Keras' own layers in our networks, where a rule by the name of
# the variable alone would match kernels of any rank:
#     stem_conv/kernel      (3, 3, 3, n)           filters: no communication
#     ..._conv1/kernel      (kh, kw, m, n)         filters: gathers m channels
#     ..._depthwise/kernel  (3, 3, m, 1)           channels: no communication
#     predictions/kernel    (m, classes)           inputs: adds up the logits
_STANDARD = (
    r"stem_conv|head_conv|stage\d+_block\d+_(conv1|conv2|shortcut)"
    r"|block\d+_(expand|project)"
)


def _rules(model):
    rules = {
        r"(.*/)?coarse_kernel": (None, model),
        r"(.*/)?(group_bias|gamma|beta|moving_mean|moving_variance)": (model,),
        rf"(.*/)?({_STANDARD})/kernel": (None, None, None, model),
        rf"(.*/)?({_STANDARD}|block\d+_depthwise)/bias": (model,),
        r"(.*/)?block\d+_depthwise/kernel": (None, None, model, None),
        r"(.*/)?predictions/kernel": (model, None),
    }
    for rank, suffix in ((1, "_1d"), (2, ""), (3, "_3d")):
        kernels = rf"(.*/)?(group_kernel|restriction_kernel){suffix}"
        rules[kernels] = (*[None] * (rank + 1), model)
    return rules


def get_layout_map(
    device_mesh: keras.distribution.DeviceMesh,
    model_parallel_dim_name: str = "model",
    data_parallel_dim_name: str = "batch",
) -> "GroupLayoutMap":
    """Return the layout that keeps each group on one device.

    It splits kernels, biases and normalisations along their channels over the
    axis `model_parallel_dim_name`, and repeats them along the other. Each
    device then holds the weights of its own groups. A layer of N groups
    gathers its N coarse channels, and a network adds up its logits; no
    parameter ever moves (section 3.2 of the paper). The standard convolutions
    of `keras_tlgc.applications` are split by filters, and gather all channels
    of their inputs: the model parallelism that the paper compares with.

    It covers the layers of `keras_tlgc.layers` and batch normalisations under
    any name, as variables are found by their own names, and all layers of
    `keras_tlgc.applications`. Other variables, as of your own stem or head,
    stay whole on every device until you add a rule; where both a rule of yours
    and one of these match, yours counts.

    It also guards `fit`, `evaluate` and `predict` of Keras models: a batch
    that the mesh cannot split, a model or an optimizer made outside of the
    distribution, or processes that are fed different rows are a `ValueError`,
    after which the model still holds its weights.

    Args:
        device_mesh: `keras.distribution.DeviceMesh`, of 1 or more devices
            along each of its axes.
        model_parallel_dim_name: string, the axis of the mesh that groups are
            split over. Its size must divide the groups of each layer.
        data_parallel_dim_name: string, the axis of the mesh that batches are
            split over.

    Returns:
        A `keras.distribution.LayoutMap` for
        `keras.distribution.ModelParallel`.

    Raises:
        ValueError: if the mesh has no such axes, or if the processes of a
            distributed run have different random states.

    Example:

    >>> mesh = keras.distribution.DeviceMesh(
    ...     (1, 1), ("batch", "model"), keras.distribution.list_devices()[:1]
    ... )
    >>> layout_map = keras_tlgc.distribution.get_layout_map(mesh)
    >>> layout_map["any/name/group_kernel"].axes
    (None, None, None, 'model')
    >>> layout_map["stem/kernel"] = (None, None, None, "model")
    """
    if not isinstance(device_mesh, keras.distribution.DeviceMesh):
        raise ValueError(
            "`device_mesh` must be a `keras.distribution.DeviceMesh`. "
            f"Received: device_mesh={device_mesh!r}. "
            "Make one from keras.distribution.list_devices()."
        )
    names = {
        "model_parallel_dim_name": model_parallel_dim_name,
        "data_parallel_dim_name": data_parallel_dim_name,
    }
    for name, axis in names.items():
        if axis not in device_mesh.axis_names:
            raise ValueError(
                f"`{name}` must be an axis of the mesh. Received: "
                f"{name}={axis!r}, and a mesh with the axes "
                f"{tuple(device_mesh.axis_names)}. Pass the name of an axis, "
                "or make a mesh with both axes (either may have size 1)."
            )
    if model_parallel_dim_name == data_parallel_dim_name:
        raise ValueError(
            "The groups and the batch need an axis of the mesh each. Received: "
            f"{model_parallel_dim_name!r} for both. "
            "Make a mesh with two axes (either may have size 1)."
        )
    if keras.backend.backend() == "jax":
        guard.install()
        guard.check_same_seed()
    return GroupLayoutMap(device_mesh, _rules(model_parallel_dim_name))


class GroupLayoutMap(keras.distribution.LayoutMap):
    """A layout map with rules to fall back on. See `get_layout_map`.

    It maps as the rules that were added to it say and, where none of them
    matches, as the defaults say.

    Args:
        device_mesh: `keras.distribution.DeviceMesh`.
        defaults: dict, from regular expressions to tuples of mesh axes.
    """

    def __init__(self, device_mesh, defaults):
        super().__init__(device_mesh)
        self._defaults = keras.distribution.LayoutMap(device_mesh)
        for rule, axes in defaults.items():
            self._defaults[rule] = axes

    def __getitem__(self, key):
        layout = super().__getitem__(key)
        return self._defaults[key] if layout is None else layout

    def __delitem__(self, key):
        super().__delitem__(key) if key in self.added else (
            self._defaults.__delitem__(key)
        )

    def __iter__(self):
        yield from self.added
        yield from self._defaults

    def __len__(self):
        return len(self.added) + len(self._defaults)

    @property
    def added(self) -> list[str]:
        """The rules that were added to the defaults."""
        return list(super().__iter__())


def matching_rules(layout_map, path: str) -> list[str]:
    """Return the rules of a layout map that decide on `path`, if any."""
    added = getattr(layout_map, "added", list(layout_map))
    for rules in (added, list(layout_map)):
        if path in rules:
            return [path]
        if found := [rule for rule in rules if re.fullmatch(rule, path)]:
            return found
    return []
