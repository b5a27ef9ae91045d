"""Groups over the devices of a mesh, as a `keras.distribution`."""

import keras

from keras_tlgc._keras import stored_layout
from keras_tlgc.distribution.choices import Choices
from keras_tlgc.distribution.following import plan
from keras_tlgc.distribution.layout_map import (
    GroupLayoutMap,
    check_mesh,
    get_layout_map,
)
from keras_tlgc.distribution.processes import data_shard, data_shards


class GroupParallel(keras.distribution.ModelParallel):
    """Model parallelism that keeps each group on one device.

    It splits kernels, biases and normalisations along their channels over one
    axis of the mesh, and repeats them along the other, which splits the batch.
    Each device then holds the weights of its own groups. A layer of N groups
    gathers its N coarse channels, and a network adds up its logits; no
    parameter ever moves (section 3.2 of the paper).

    How a variable is split is decided when it is made, from its layer's class,
    its part in the layer and its shape; names of layers do not count:

    - the layers of `keras_tlgc.layers` are split by groups;
    - standard convolutions are split by filters, and gather all channels of
      their inputs, if these are split: the model parallelism that the paper
      compares with;
    - depthwise convolutions, normalisations and `PReLU` are split if the layer
      before them is, `Dense` layers too, by their inputs. The layer before is
      taken to be the last one with as many outputs, or any, since channels may
      be joined; `follow` knows better;
    - all others stay whole on every device, and so does what the devices do not
      divide, except groups, which are an error.

    `choices` lists what was decided, with the reasons.

    It also guards `fit`, `evaluate` and `predict` of Keras models while it is
    set. They raise a `ValueError` if the mesh cannot split a batch, if the
    model or the optimizer was made outside of the distribution, or if processes
    are fed different rows. The model still holds its weights after that.

    Args:
        device_mesh: `keras.distribution.DeviceMesh`, of 1 or more devices along
            each of its axes. By default, all devices are along the model axis.
        model_axis: string, the axis of the mesh that groups are split over. Its
            size must divide the groups of each layer.
        batch_dim_name: string, the axis of the mesh that batches are split
            over.
        auto_shard_dataset: bool, as for `keras.distribution.ModelParallel`.

    Attributes:
        layout_map: the `GroupLayoutMap`, to which rules of your own can be
            added: they count before all else, and must fit every variable that
            they match.
        model_axis: string, as given.

    Raises:
        ValueError: if the mesh has no such axes, or if the processes of a
            distributed run have different random states. It is raised later,
            when a layer is built, if a rule of yours does not fit a variable or
            the devices do not divide the groups.

    Example:

    >>> distribution = keras_tlgc.distribution.GroupParallel()
    >>> distribution.layout_map[".*/my_head/kernel"] = (None, "model")
    >>> keras.distribution.set_distribution(distribution)
    >>> model = keras_tlgc.applications.WideResNet(10, 1)
    >>> keras.distribution.set_distribution(None)
    >>> print(distribution.choices["predictions/bias"].why)
    it is added to the sums of all devices
    """

    layout_map: GroupLayoutMap

    def __init__(
        self,
        device_mesh: keras.distribution.DeviceMesh | None = None,
        model_axis: str = "model",
        batch_dim_name: str = "batch",
        auto_shard_dataset: bool = True,
    ):
        if device_mesh is None:
            devices = keras.distribution.list_devices()
            device_mesh = keras.distribution.DeviceMesh(
                (1, len(devices)), (batch_dim_name, model_axis), devices
            )
        check_mesh(
            device_mesh, model_axis=model_axis, batch_dim_name=batch_dim_name
        )
        self.layout_map = get_layout_map(
            device_mesh, model_axis, batch_dim_name
        )
        super().__init__(
            layout_map=self.layout_map,
            batch_dim_name=batch_dim_name,
            auto_shard_dataset=auto_shard_dataset,
        )

    @property
    def model_axis(self) -> str:
        """The axis of the mesh that groups are split over."""
        return self.layout_map.model_axis

    @property
    def choices(self) -> Choices:
        """How the variables that were made under this are split, and why."""
        return self.layout_map.choices

    # Older versions of Keras lack these.
    @property
    def num_data_shards(self) -> int:
        """In how many parts the processes hold a batch."""
        return data_shards(self)

    @property
    def data_shard_id(self) -> int:
        """The number of the part of a batch that this process holds."""
        return data_shard(self)

    def follow(self, model: keras.Model) -> "GroupParallel":
        """Split variables as `plan(model, self)` says, by their paths.

        It is for a model that is then made anew under this distribution, with
        the same names: by `keras.models.clone_model`, `load_model` or the
        function that made it.

        Args:
            model: functional or Sequential `keras.Model`, built, under any
                distribution or none.

        Returns:
            This distribution.

        Raises:
            ValueError: as `plan`.

        Example:

        ```python
        distribution = GroupParallel(mesh).follow(model)
        keras.distribution.set_distribution(distribution)
        split = keras.models.clone_model(model)
        split.set_weights(model.get_weights())
        ```
        """
        self.layout_map.plan.update(plan(model, self))
        return self

    def get_variable_layout(
        self, variable: keras.Variable
    ) -> keras.distribution.TensorLayout:
        """Return the layout of a variable that is made, or was made."""
        layout = stored_layout(variable)
        return self.layout_map.layout_of(variable) if layout is None else layout
