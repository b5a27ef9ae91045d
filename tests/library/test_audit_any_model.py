"""The audit of models and layout maps that are not of this package."""

import keras
import numpy as np
import pytest
from audited import two_level
from keras import layers
from meshes import ON_JAX, compiled, device_mesh

from keras_tlgc.audit import audit, audit_network
from keras_tlgc.distribution import GroupParallel

pytestmark = ON_JAX

FLOAT = 4  # Bytes.
# Those of Megatron-LM: heads and hidden units are split, so that attention and
# feed-forward each add up their outputs once, and their inputs' gradients.
MEGATRON = {
    ".*attention/(query|key|value)/kernel": (None, "tensor", None),
    ".*attention/(query|key|value)/bias": ("tensor", None),
    ".*attention/attention_output/kernel": ("tensor", None, None),
    ".*up/kernel": (None, "tensor"),
    ".*up/bias": ("tensor",),
    ".*down/kernel": ("tensor", None),
}


def split_by(rules, shape=(2, 2), names=("batch", "model")):
    """Set Keras' own model parallelism with rules, or a layout map."""
    count = int(np.prod(shape))
    devices = keras.distribution.list_devices("cpu")[:count]
    mesh = keras.distribution.DeviceMesh(shape, names, devices)
    if callable(rules):
        layout_map = rules(mesh)
    else:
        layout_map = keras.distribution.LayoutMap(mesh)
        for rule, axes in rules.items():
            layout_map[rule] = axes
    distribution = keras.distribution.ModelParallel(
        layout_map=layout_map, batch_dim_name=names[0]
    )
    keras.distribution.set_distribution(distribution)


def transformer(vocabulary=32, length=6, width=16):
    tokens = keras.Input((length,), dtype="int32")
    x = layers.Embedding(vocabulary, width, name="embedding")(tokens)
    y = layers.LayerNormalization()(x)
    y = layers.MultiHeadAttention(4, width // 4, name="attention")(y, y)
    x = layers.Add()([x, y])
    y = layers.LayerNormalization()(x)
    y = layers.Dense(4 * width, activation="gelu", name="up")(y)
    y = layers.Dense(width, name="down")(y)
    x = layers.LayerNormalization()(layers.Add()([x, y]))
    model = keras.Model(tokens, layers.Dense(vocabulary, name="logits")(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss)
    return model


def perceptron():
    return compiled(
        keras.Sequential(
            [
                keras.Input((12,)),
                layers.Dense(32, name="up"),
                layers.LayerNormalization(name="norm"),
                layers.Dense(12, name="down"),
                layers.Dense(10, activation="softmax", name="head"),
            ]
        )
    )


def on_axis(result, axis):
    return {
        (row.layer, row.kind, row.role)
        for row in result.rows
        if row.axes == (axis,)
    }


def test_transformer_on_a_mesh_with_other_names():
    split_by(MEGATRON, names=("data", "tensor"))
    result = audit(transformer(), 8)
    assert result.ok
    assert result.model_axis == "tensor"
    assert on_axis(result, "tensor") == {
        ("attention/attention_output", "all-reduce", "moved"),
        ("attention/query", "all-reduce", "moved"),
        ("attention/key", "all-reduce", "moved"),
        ("attention/value", "all-reduce", "moved"),
        ("up", "all-reduce", "input"),
        ("down", "all-reduce", "outputs"),
    }
    activations = FLOAT * (8 // 2) * 6 * 16
    # Both of two devices send half, and receive half, twice.
    assert {row.bytes for row in result.moved} == {activations}
    roles = {row.role for row in result.rows if row.axes == ("data",)}
    assert roles == {"gradient or statistic", "scalar"}
    lines = str(result).splitlines()
    assert max(map(len, lines)) <= 80
    assert "4 arrays move, 6,144 bytes a device, that the audit" in str(result)
    assert lines[-1] == "OK: all else that moves is expected."


class TwoHeads(keras.Model):
    """Takes a dictionary with tokens, and returns one."""

    def __init__(self):
        super().__init__()
        self.embedding = layers.Embedding(50, 16, name="embedding")
        self.up = layers.Dense(32, activation="relu", name="up")
        self.down = layers.Dense(16, name="down")
        self.kind = layers.Dense(10, name="kind")
        self.size = layers.Dense(1, name="size")

    def call(self, inputs):
        x = keras.ops.mean(self.embedding(inputs["tokens"]), axis=1)
        x = keras.ops.concatenate([x, inputs["features"]], axis=-1)
        x = self.down(self.up(x))
        return {"kind": self.kind(x), "size": self.size(x)}


def test_subclassed_model_of_several_inputs_and_losses():
    split_by({".*embeddings": ("model", None), ".*up/kernel": (None, "model")})
    x = {
        "tokens": np.zeros((8, 7), "int32"),
        "features": np.zeros((8, 4), "float32"),
    }
    y = {"kind": np.zeros(8, "int32"), "size": np.zeros((8, 1), "float32")}
    model = TwoHeads()
    model(x)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        "adam", {"kind": loss, "size": "mse"}, metrics={"size": ["mae"]}
    )
    result = audit(model, 8, data=(x, y))
    assert result.ok
    # Each device looks tokens up in its part of the table.
    looked_up = FLOAT * 4 * 7 * 16
    (row,) = [row for row in result.moved if row.layer == "embedding"]
    assert (row.kind, row.axes, row.bytes) == (
        "all-reduce",
        ("model",),
        looked_up,
    )
    # Of the bias of `up`, which is whole, each device computes a part.
    assert (32,) in {row.shape for row in result.moved if not row.layer}
    assert "unknown  " in str(result)


def test_variables_split_over_the_axis_of_the_batch():
    split_by({".*(up|down)/kernel": ("data", None)}, (4,), ("data",))
    result = audit(perceptron(), 8)
    assert result.ok
    gathered = {(row.layer, row.shape): row.bytes for row in result.moved}
    assert gathered["up", (12, 32)] == FLOAT * 12 * 32 * 3 // 4
    assert result.shards == 4
    assert "1/4 is 25.0%" in str(result)
    sums = {
        (row.layer, row.shape)
        for row in result.rows
        if row.role == "gradient or statistic"
    }
    # One of a whole variable, and one of a variable of which each device keeps
    # a part.
    assert {("head", (10, 12)), ("down", (12, 32))} <= sums


def test_what_a_loop_moves_counts_at_each_step():
    split_by({".*recurrent_kernel": ("model", None)})
    rnn = layers.SimpleRNN(16, name="rnn")
    model = compiled(keras.Sequential([keras.Input((5, 6)), rnn]))
    result = audit(model, 8)
    sums = [row for row in result.rows if row.shape == (4, 16)]
    assert (row := sums[0]).kind == "all-reduce"
    assert row.layer == "rnn/simple_rnn_cell"
    assert (row.times, row.bytes) == (5, 5 * FLOAT * 4 * 16)
    assert "5 x all-reduce" in str(result)


@pytest.mark.parametrize(
    ("conv", "rules"),
    [
        (two_level(), {"(.*/)?group_kernel": (None, None, "model", None)}),
        (
            layers.Conv2D(16, 3, groups=4, name="conv"),
            {".*conv/kernel": (None, None, None, "model")},
        ),
    ],
    ids=["two_level", "native"],
)
def test_layers_with_known_needs_are_judged_under_any_map(conv, rules):
    split_by(rules)
    pool = layers.GlobalAveragePooling2D()
    result = audit(
        compiled(keras.Sequential([keras.Input((8, 8, 16)), conv, pool])), 8
    )
    assert not result.ok
    assert {row.layer for row in result.unexpected} == {"conv"}
    assert "NOT EXPECTED" in str(result)


def test_attention_among_layers_of_this_package():
    keras.distribution.set_distribution(GroupParallel(device_mesh(2, 2)))
    x = images = keras.Input((8, 8, 3))
    x = layers.Conv2D(16, 3, name="stem")(x)
    x = layers.Reshape((16, 16))(two_level()(x))
    x = layers.MultiHeadAttention(2, 8, name="attention")(x, x)
    x = layers.GlobalAveragePooling1D()(x)
    model = keras.Model(images, layers.Dense(10, activation="softmax")(x))
    result = audit(compiled(model), 8)
    assert result.ok, str(result)
    assert result.bytes("coarse") == sum(result.formula.values()) > 0
    assert any("attention" in row.layer for row in result.moved)


def test_rules_that_do_not_do_what_they_say():
    split_by(
        {
            ".*up/kernel": ("model",),
            "upp/bias": ("model",),
            ".*norm.*": ("model",),
            ".*head/out.*": ("batch",),
            ".*dawn/output": (None, "model"),
        }
    )
    model = perceptron()
    name = model.name
    result = audit(model, 8)
    assert not result.ok
    entries = "must have an entry for each axis of what it matches. It has "
    nothing = (
        "matches no variable and no output. It must match a whole path, as "
        "'block/conv/kernel'."
    )
    end = "End it with the names of variables, as in '.*/(gamma|beta)'."
    faults = {
        ".*up/kernel": f"{entries}('model',), which Keras counts from the "
        f"first axis, for {name}/up/kernel of shape (12, 32).",
        "upp/bias": nothing,
        ".*norm.*": f"matches outputs of layers: {name}/norm/output. {end}",
        ".*head/out.*": "matches outputs of layers and no variable: "
        f"{name}/head/output. {end}",
        ".*dawn/output": nothing,
    }
    assert result.warnings == [
        f"The rule {rule!r} of the layout map {fault}"
        for rule, fault in faults.items()
    ]


def test_rule_that_no_output_fits():
    split_by({".*up/o.*": ("batch", None, None, "model")})
    with pytest.raises(
        ValueError,
        match=r"an entry for each axis of the outputs.*Received: the rule "
        r"'\.\*up/o\.\*' = \('batch', None, None, 'model'\), for '.*/up/outp",
    ):
        audit(perceptron(), 8)
    # What is asked is Keras' own method again.
    assert "get_tensor_layout" not in vars(keras.distribution.distribution())


@pytest.mark.parametrize(
    ("name", "axes"),
    [("kernel", (None, None, "model")), ("bias", ("model",))],
)
def test_rule_that_no_variable_fits(name, axes):
    def build():
        head = layers.Dense(9, activation="softmax", name="head")
        return keras.Sequential([keras.Input((12,)), head])

    split_by({f".*head/{name}": axes})
    with pytest.raises(
        ValueError,
        match=rf"Received: the rule '\.\*head/{name}' = .*for '.*/head/{name}'",
    ):
        audit_network(build, keras.distribution.distribution(), 8)


@pytest.mark.parametrize("name", ["Gemma", "Llama"])
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
def test_kerashub_by_its_own_layout_map(name):
    hub = pytest.importorskip("keras_hub", reason="KerasHub is not installed")
    backbone = getattr(hub.models, f"{name}Backbone")
    split_by(backbone.get_layout_map)
    model = backbone(
        vocabulary_size=64,
        num_layers=1,
        num_query_heads=4,
        num_key_value_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        **{"head_dim": 4} if name == "Gemma" else {},
    )
    model.compile("adam", "mse")
    tokens = np.zeros((8, 6), "int32")
    x = {"token_ids": tokens, "padding_mask": tokens}
    result = audit(model, 8, data=(x, np.zeros((8, 6, 16), "float32")))
    assert result.ok, str(result)
    # Kernels are split along both axes, and gathered along the batch.
    kernels = [
        row
        for row in result.moved
        if (row.kind, row.axes) == ("all-gather", ("batch",))
    ]
    assert any(row.layer.endswith("attention/query") for row in kernels)
    outputs = FLOAT * 4 * 6 * 16
    assert any(
        row.layer.endswith("/attention_output") and row.bytes == outputs
        for row in result.moved
    )
    # For Llama the map splits the inputs of these kernels, for Gemma heads.
    queries = [row for row in result.moved if row.shape == (4, 6, 4, 4)]
    assert bool(queries) == (name == "Llama")
    assert max(map(len, str(result).splitlines())) <= 80
