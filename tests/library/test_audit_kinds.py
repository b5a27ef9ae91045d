"""The audit of the kinds of convolution other than two levels."""

import pytest
from audited import model_around, on_model
from meshes import ON_JAX, model_parallel

from keras_tlgc import layers
from keras_tlgc.audit import audit

pytestmark = ON_JAX


def test_low_rank_gathers_its_coarse_channels():
    """Of all groups, once each way; C's outputs stay where they are."""
    model_parallel(2, 2)
    layer = layers.LowRankConv2D(6, 3, groups=4, coarse_channels=5, name="conv")
    result = audit(model_around(layer), 8)
    assert result.ok, str(result)
    assert on_model(result) == {
        "all-gather": 1,
        "reduce-scatter": 1,
        "all-reduce": 1,
    }
    received = 4 * (8 // 2 * 4 * 4) * 4 * 5 // 2  # Of float32, half of them.
    assert result.formula == {
        "all-gather": received,
        "reduce-scatter": received,
    }
    assert received == result.bytes("coarse") // 2


def test_balanced_adds_up_its_mean():
    """Of all groups, once each way, at the positions of the inputs."""
    model_parallel(2, 2)
    layer = layers.BalancedGroupConv2D(8, 3, groups=4, name="conv")
    result = audit(model_around(layer), 8)
    assert result.ok, str(result)
    assert on_model(result) == {"all-reduce": 3}  # One of the logits.
    mean = 4 * (8 // 2 * 6 * 6 * 16 // 4)  # Bytes of float32.
    # Between 2 devices, a sum moves twice half of it.
    assert result.formula["all-reduce"] == 2 * mean == result.bytes("coarse")
    assert result.hiding["conv"] > 0


def test_low_rank_has_to_fit_the_mesh():
    model_parallel(1, 2)
    for options, message in (
        (dict(filters=4, groups=1), "must divide the groups.*groups=1, and 2"),
        (dict(filters=5, groups=2), "must divide the filters.*filters=5, and"),
    ):
        layer = layers.LowRankConv2D(kernel_size=3, name="conv", **options)
        with pytest.raises(ValueError, match=message):
            layer.build((None, 5, 5, 4))
