"""LoRA: the products beside the kernels, beside Keras' own and merged."""

import keras
import numpy as np
import pytest
from cases import (
    BALANCED,
    CONV,
    GROUP,
    LEARNABLE,
    LOW_RANK,
    RAGGED,
    SHUFFLE,
    TWO_LEVEL,
    assert_near,
    make,
    make_model,
)
from helpers import gradients, outputs, random, to_numpy
from meshes import ON_JAX, compiled, images, is_split, model_parallel

from keras_tlgc.costs import count_params

LORA = dict(lora_rank=2, lora_alpha=3)
# One for each way to hold kernels.
KINDS = [GROUP[3], SHUFFLE[1], TWO_LEVEL[2], LOW_RANK[2], BALANCED[2]]
KINDS += [LEARNABLE, RAGGED]


def with_lora(layer, rank=2, alpha=3):
    """Enable LoRA, with factors that are not zero."""
    layer.enable_lora(rank, alpha)
    for i, factor in enumerate(layer.lora_kernels):
        factor.assign(random(*factor.shape, seed=i + 9))
    return layer


def merged(kernel, a, b, groups, scale=3 / 2):
    """Add scale * A B to each group of a kernel, in NumPy."""
    triples = zip(
        *(np.split(to_numpy(v), groups, -1) for v in (kernel, a, b)),
        strict=True,
    )
    return np.concatenate([w + scale * x @ y for w, x, y in triples], -1)


@pytest.mark.parametrize("cls", KINDS)
def test_products_are_added_to_the_kernels(cls):
    layer, x = make(cls)
    y = outputs(layer, x)
    plain, _ = make(cls)
    layer.enable_lora(2, lora_alpha=3)
    assert_near(outputs(layer, x), y)
    factors = layer.lora_kernels
    kernels = [kernel for kernel, _ in layer.adapted_kernels]
    assert [v.name for v in factors] == [
        f"lora_{kernel.name}_{factor}" for kernel in kernels for factor in "ab"
    ]
    assert layer.trainable_variables == [layer.bias, *factors]
    assert layer.lora_kernel_a is factors[0]
    assert layer.lora_kernel_b is factors[1]
    for i, factor in enumerate(factors):
        factor.assign(random(*factor.shape, seed=i))

    stored = {}
    layer.save_own_variables(stored)
    plain.load_own_variables({k: to_numpy(v) for k, v in stored.items()})
    groups = 2 if cls.equal_groups else 1
    pairs = zip(factors[::2], factors[1::2], strict=True)
    for kernel, (a, b) in zip(kernels, pairs, strict=True):
        [new] = [v for v in plain.weights if v.name == kernel.name]
        assert_near(to_numpy(new), merged(kernel, a, b, groups))
        assert_near(to_numpy(layer.merged(kernel)), to_numpy(new))
    np.testing.assert_array_equal(to_numpy(plain.bias), to_numpy(layer.bias))
    assert_near(outputs(layer, x), outputs(plain, x), atol=1e-4)
    assert_near(to_numpy(layer.dense_kernel()), to_numpy(plain.dense_kernel()))
    for gradient in gradients(layer, x)[1]:
        assert np.isfinite(gradient).all() and gradient.any()


@pytest.mark.parametrize("rank, groups", [(1, 1), (2, 1), (3, 1), (2, 2)])
def test_equals_keras(rank, groups):
    """With Keras' one A for all groups as the A of each."""
    conv = CONV[rank](8, 3, groups=groups, kernel_regularizer="l2", **LORA)
    layer = GROUP[rank](8, 3, groups=groups, kernel_regularizer="l2", **LORA)
    x = random(2, *[5] * rank, 4)
    for built in (conv, layer):
        built.build(x.shape)
    b = random(2, 8)
    conv.lora_kernel_b.assign(b)
    layer.lora_kernel_b.assign(b)
    a = to_numpy(conv.lora_kernel_a)
    layer.lora_kernel_a.assign(np.concatenate([a] * groups, -1))
    stores = {}, {}
    layer.load_own_variables({"0": to_numpy(conv._kernel), "1": np.zeros(8)})
    layer.lora_kernel_b.assign(b)  # Loading has merged it, as zeros.
    for built, store in zip((conv, layer), stores, strict=True):
        built.save_own_variables(store)
    for ours, theirs in zip(*[s.values() for s in stores], strict=True):
        assert_near(to_numpy(ours), to_numpy(theirs))
    assert_near(to_numpy(layer.kernel), to_numpy(conv.kernel))
    assert_near(to_numpy(layer(x)), to_numpy(conv(x)))
    if groups == 1:
        for ours, theirs in zip(layer.losses, conv.losses, strict=True):
            assert_near(to_numpy(ours), to_numpy(theirs))
        assert [v.shape for v in layer.weights] == [
            v.shape for v in (layer._kernel, *conv.trainable_variables)
        ]


@pytest.mark.parametrize("rank", TWO_LEVEL)
def test_number_of_parameters(rank):
    """As the docstring of `TwoLevelGroupConv2D` counts them."""
    m, n, groups, r, q, k, k0 = 8, 24, 4, 2, 3, 3**rank, 2**rank
    layer = TWO_LEVEL[rank](
        n,
        3,
        groups=groups,
        coarse_channels=r,
        coarse_kernel_size=2,
        lora_rank=q,
        use_bias=False,
    )
    layer.build((None, *[5] * rank, m))
    p = min(q, groups * r, n // groups)
    fine, restriction, coarse = (
        q * (k * m + n),
        min(q, r) * (k0 * m + groups * r),
        p * (groups * groups * r + n),
    )
    trained = sum(np.prod(v.shape) for v in layer.trainable_variables)
    assert trained == fine + restriction + coarse


@pytest.mark.parametrize(
    "cls, policy",
    [
        (GROUP[2], "float32"),
        (TWO_LEVEL[1], "mixed_bfloat16"),
        (LEARNABLE, "float32"),
        (RAGGED, "float32"),
    ],
)
def test_save_load_and_train_on(cls, policy, tmp_path):
    model, layer, x = make_model(cls, dtype=policy)
    with_lora(layer)
    y = model.predict(x, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    again = loaded.layers[0]
    assert again.get_config() == layer.get_config()
    assert (again.lora_rank, again.lora_alpha) == (2, 3)
    store = {}
    layer.save_own_variables(store)
    assert {
        keras.backend.standardize_dtype(v.dtype) for v in store.values()
    } == {"float32"}
    tolerance = 1e-5 if policy == "float32" else 0.2
    assert_near(loaded.predict(x, verbose=0), y, atol=tolerance)

    frozen = [v for v in again.weights if not v.trainable]
    before = [to_numpy(v) for v in frozen]
    trained = [to_numpy(v) for v in again.trainable_variables]
    loaded.compile(keras.optimizers.SGD(0.1), "mse")
    loaded.fit(x, random(len(x), 2, seed=1), epochs=2, verbose=0)
    for variable, old in zip(frozen, before, strict=True):
        np.testing.assert_array_equal(to_numpy(variable), old)
    for variable, old in zip(again.trainable_variables, trained, strict=True):
        assert (to_numpy(variable) != old).any(), variable.name

    # Into a model without it, and from one without it.
    plain, _, _ = make_model(cls, dtype=policy)
    model.save_weights(tmp_path / "model.weights.h5")
    plain.load_weights(tmp_path / "model.weights.h5")
    assert_near(plain.predict(x, verbose=0), y, atol=tolerance)
    plain.save_weights(tmp_path / "plain.weights.h5")
    with_lora(plain.layers[0])
    plain.load_weights(tmp_path / "plain.weights.h5")
    assert_near(plain.predict(x, verbose=0), y, atol=tolerance)


def test_learnt_groups_keep_what_lora_added():
    layer, x = make(LEARNABLE)
    with_lora(layer)
    fast = layer.to_group_conv()
    assert not fast.lora_enabled and "lora_rank" not in fast.get_config()
    assert_near(outputs(fast, x), outputs(layer, x), atol=1e-4)
    trained = [layer.bias, *layer.lora_kernels]
    assert count_params(lambda: layer) == sum(
        map(np.size, map(to_numpy, trained))
    )


@ON_JAX
@pytest.mark.parametrize(
    ("cls", "filters"),
    [(TWO_LEVEL, 16), (LOW_RANK, 6)],  # 4 groups do not divide 6 filters.
    ids=["two_level", "low_rank"],
)
def test_factors_stay_with_their_groups(cls, filters):
    x, y = images(8, (6, 6, 8), 4)

    def trained():
        keras.utils.set_random_seed(1)
        model = keras.Sequential(
            [
                keras.Input(x.shape[1:]),
                cls[2](filters, 3, groups=4, coarse_channels=2, **LORA),
                keras.layers.GlobalAveragePooling2D(),
                keras.layers.Dense(4, activation="softmax"),
            ]
        )
        for i, v in enumerate(model.weights):
            v.assign(random(*v.shape, seed=i) / 2)
        compiled(model).fit(x, y, batch_size=4, shuffle=False, verbose=0)
        return model

    expected = trained().get_weights()
    model_parallel(2, 2)
    model = trained()
    others = [cls[rank](4, 1, groups=2, **LORA) for rank in (1, 3)]
    for layer in others:
        layer.build((None, *[3] * layer.rank, 4))
    for layer in (model.layers[0], *others):
        for variable in layer.weights:
            assert is_split(variable), variable.name
    for new, old in zip(model.get_weights(), expected, strict=True):
        assert_near(new, old)


CONSTRAINTS = [
    (GROUP[2], "kernel_constraint"),
    (LEARNABLE, "kernel_constraint"),
    (RAGGED, "kernel_constraint"),
    (SHUFFLE[2], "kernel_constraint"),
    (TWO_LEVEL[2], "restriction_constraint"),
    (TWO_LEVEL[2], "coarse_constraint"),
]


@pytest.mark.parametrize("cls, name", CONSTRAINTS)
def test_constrained_kernels_are_refused(cls, name):
    message = rf"no constraint on a kernel would hold. Received: {name} of the"
    layer, x = make(cls, **{name: "non_neg"})
    before = layer.trainable_variables
    with pytest.raises(ValueError, match=message):
        layer.enable_lora(2)
    assert layer.trainable_variables == before
    layer = type(layer).from_config({**layer.get_config(), **LORA})
    with pytest.raises(ValueError, match=message):
        layer.build(x.shape)
    assert not layer.weights


def test_bad_use():
    layer = GROUP[2](4, 3, groups=2)
    with pytest.raises(
        ValueError, match="`enable_lora` needs a layer that has"
    ):
        layer.enable_lora(2)
    layer.build((None, 5, 5, 4))
    for kwargs, message in (
        (dict(rank=0), "`lora_rank` must be a positive integer.*lora_rank=0"),
        (
            dict(rank=2, lora_alpha="2"),
            "`lora_alpha` must be a number or None.*lora_alpha='2'.*Pass a",
        ),
        (dict(rank=2, a_initializer="none_such"), "none_such"),
    ):
        with pytest.raises(ValueError, match=message):
            layer.enable_lora(**kwargs)
    assert not layer.lora_enabled and len(layer.trainable_variables) == 2
    layer.enable_lora(2)
    with pytest.raises(
        ValueError, match=r"once for a layer.*enable_lora\(3\).*lora_rank=2"
    ):
        layer.enable_lora(3)
    with pytest.raises(
        ValueError,
        match=r"must be those of such a layer.*1 arrays.*group_kernel",
    ):
        layer.load_own_variables({"0": to_numpy(layer.kernel)})
    with pytest.raises(ValueError, match=r"`lora_rank` must be a p.*=1\.5"):
        GROUP[2](4, 3, lora_rank=1.5)
