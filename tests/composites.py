"""Composite layers: some that `convert` can write out, many that stay."""

import keras
from converting import IMAGE, conv
from keras import layers, ops


@keras.saving.register_keras_serializable("tests")
class Block(layers.Layer):
    """A layer that holds others, as those of KerasHub do."""

    def __init__(self, filters=8, **options):
        super().__init__(**options)
        self.filters = filters
        dtype = self.dtype_policy
        self.conv = conv(filters, name="conv", dtype=dtype)
        self.norm = layers.BatchNormalization(name="norm", dtype=dtype)
        self.drop = layers.Dropout(0.5, name="drop", dtype=dtype)

    def build(self, input_shape):
        self.conv.build(input_shape)
        self.norm.build((*input_shape[:-1], self.filters))
        self.built = True

    def call(self, x, training=None):
        y = self.norm(self.conv(x), training=training)
        return x + ops.relu(self.drop(y, training=training))

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}


class Outer(Block):
    """A composite in a composite."""

    def __init__(self, **options):
        super().__init__(**options)
        self.inside = Block(name="inside")

    def call(self, x, training=None):
        y = self.inside(x, training=training)
        return super().call(y, training=training)

    def build(self, input_shape):
        super().build(input_shape)
        self.inside.build(input_shape)


class ByDefault(Block):
    def call(self, x, training=False):
        y = self.norm(self.conv(x), training=bool(training))
        return layers.Add()([x, y])  # New in each call, as in KerasCV.


class TrainsByDefault(ByDefault):
    def call(self, x, training=True):
        return super().call(x, training=training)


class OwnWeight(Block):
    def build(self, input_shape):
        super().build(input_shape)
        self.scale = self.add_weight(shape=(), initializer="ones")

    def call(self, x):
        return self.scale * super().call(x)


class UsesKernel(Block):
    def call(self, x):
        return super().call(x) + ops.mean(self.conv.kernel)


class OtherInTraining(Block):
    def call(self, x, training=None):
        return self.conv(x) if training else super().call(x)


class AlwaysTrains(Block):
    def call(self, x):
        return self.norm(self.conv(x), training=True)


class NeverTrains(Block):
    def call(self, x, training=None):
        return self.norm(self.conv(x), training=False)


class DropsTraining(Block):
    def call(self, x):
        return super().call(x)


class AddsLoss(Block):
    def call(self, x, training=None):
        self.add_loss(ops.mean(self.conv.kernel))
        return super().call(x, training=training)


class AddsLossOfInputs(Block):
    def call(self, x):
        self.add_loss(ops.mean(x))
        return super().call(x)


class Unfollowed(Block):
    def call(self, x):
        if isinstance(x, keras.KerasTensor) and self.built:
            raise RuntimeError("not twice\nor more")
        return super().call(x)

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


class NotHeld(Block):
    other = None

    def call(self, x, training=None):
        return self.other(super().call(x, training=training))


class BranchesInTraining(Block):
    def call(self, x, training=None):
        y = self.conv(x)
        return self.drop(y) if training else self.norm(y)


class NoConfig(Block):
    def __init__(self, function=len, **options):  # No plain argument either.
        super().__init__(**options)

    def get_config(self):
        raise RuntimeError("no config")


class Strange(layers.Layer):
    def __init__(self, function=len, **options):
        super().__init__(**options)

    def call(self, x):
        return x

    def get_config(self):
        raise RuntimeError("no config")


class Holds(Block):
    def __init__(self, **options):
        super().__init__(**options)
        self.inside = Strange(name="inside")

    def call(self, x, training=None):
        return self.inside(super().call(x, training=training))


class OuterOfNoConfig(Outer):
    def __init__(self, **options):
        super().__init__(**options)
        self.inside = NoConfig(name="inside")


class Structures(Block):
    def build(self, shapes):
        super().build(shapes[0])

    def call(self, pair, training=None):
        x, y = pair
        deep = super().call(x, training=training)
        return {"deep": deep, "sum": ops.add(x, y)}


class NeedsSizes(Block):
    def build(self, input_shape):
        super().build(input_shape)
        self.pixels = input_shape[1] * input_shape[2]


class TwoInputs(Block):
    def build(self, x_shape, other_shape):
        super().build(x_shape)

    def call(self, x, other):
        return super().call(x) + other


class Wraps(layers.Wrapper):
    def call(self, x):
        return self.layer(x)


def not_held():
    NotHeld.other = conv(name="other")
    NotHeld.other.build((None, *IMAGE))
    return NotHeld(name="block")


class Block1D(layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.conv = layers.Conv1D(8, 3, padding="same", name="conv")
        self.supports_masking = True

    def build(self, input_shape):
        self.conv.build(input_shape)

    def call(self, x):
        return self.conv(x)


class Spare(Block):
    def __init__(self, **options):
        super().__init__(**options)
        self.spare = Block(name="spare")

    def build(self, input_shape):
        super().build(input_shape)
        self.spare.build(input_shape)


class SpareModel(keras.Model):
    def __init__(self, name):
        x = keras.Input(IMAGE)
        super().__init__(x, Block(name="a")(x), name=name)
        self.held = self.layers[-1]  # What is called is no spare part.
        self.spare = Block(name="spare")
        self.spare.build((None, *IMAGE))

    def get_config(self):
        return {"name": self.name}


@keras.saving.register_keras_serializable("tests")
class ShapedBlock(Block):
    def compute_output_shape(self, input_shape):
        return input_shape


class Detector(keras.Model):
    """A task as those of KerasHub, which asks its backbone for more."""

    preprocessor = save_to_preset = None

    def __init__(self, backbone, **options):
        x = keras.Input(backbone.image_shape)
        super().__init__(x, conv(name="head")(backbone(x)), **options)
        self.backbone = backbone

    def get_config(self):
        return {"backbone": self.backbone, "name": self.name}
