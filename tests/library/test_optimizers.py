import keras
import numpy as np
import pytest

import keras_tlgc
from keras_tlgc.optimizers import CoupledSGD

RATES = [0.1, 0.1, 0.1, 0.01, 0.01, 0.001]


def gradients():
    rng = np.random.default_rng(0)
    return [rng.normal(size=(3, 2)).astype("float32") for _ in RATES]


def steps(optimizer, start, **excluded):
    """Return the variable after each step, with a lower rate now and then."""
    variable = keras.Variable(start, name="kernel")
    if excluded:
        optimizer.exclude_from_weight_decay(**excluded)
    optimizer.build([variable])
    values = []
    for rate, gradient in zip(RATES, gradients(), strict=True):
        optimizer.learning_rate = rate
        optimizer.apply([keras.ops.convert_to_tensor(gradient)])
        values.append(keras.ops.convert_to_numpy(variable).copy())
    return values


def torchs_steps(start, momentum, decay, nesterov):
    """The same, by PyTorch's documentation of `torch.optim.SGD`."""
    value, velocity, values = start.copy(), np.zeros_like(start), []
    for rate, gradient in zip(RATES, gradients(), strict=True):
        step = gradient + decay * value
        velocity = momentum * velocity + step
        step = step + momentum * velocity if nesterov else velocity
        value = value - rate * step
        values.append(value)
    return values


CASES = [(0.0, 0.1, False), (0.9, 0.0, False), (0.9, 0.1, False)]
CASES += [(0.9, 0.1, True)]


@pytest.fixture
def start():
    return np.linspace(-1, 1, 6, dtype="float32").reshape(3, 2)


@pytest.mark.parametrize("momentum, decay, nesterov", CASES)
def test_steps_are_those_of_pytorch(start, momentum, decay, nesterov):
    optimizer = CoupledSGD(
        momentum=momentum, weight_decay=decay or None, nesterov=nesterov
    )
    expected = torchs_steps(start, momentum, decay, nesterov)
    for a, b in zip(steps(optimizer, start), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("momentum, decay, nesterov", CASES)
def test_our_reference_is_pytorch(start, momentum, decay, nesterov):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    weight = torch.nn.Parameter(torch.tensor(start))
    optimizer = torch.optim.SGD(
        [weight], 0.1, momentum, weight_decay=decay, nesterov=nesterov
    )
    expected = torchs_steps(start, momentum, decay, nesterov)
    for rate, gradient, value in zip(RATES, gradients(), expected, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        weight.grad = torch.tensor(gradient)
        optimizer.step()
        np.testing.assert_allclose(
            weight.detach().numpy(), value, rtol=1e-5, atol=1e-6
        )


def test_keras_own_is_another(start):
    own = keras.optimizers.SGD(momentum=0.9, weight_decay=0.1)
    ours = CoupledSGD(momentum=0.9, weight_decay=0.1)
    difference = np.abs(steps(own, start)[-1] - steps(ours, start)[-1]).max()
    assert difference > 0.01


def test_variables_can_be_excluded_from_decay(start):
    optimizer = CoupledSGD(momentum=0.9, weight_decay=0.1)
    plain = torchs_steps(start, 0.9, 0.0, False)
    np.testing.assert_allclose(
        steps(optimizer, start, var_names=["kernel"])[-1],
        plain[-1],
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_fit_decays_all_trainable_variables(policy):
    keras.config.set_dtype_policy(policy)
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(4),
            keras.layers.BatchNormalization(),
        ]
    )
    before = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
    # The gradients of a loss that depends on nothing are zero.
    model.compile(
        CoupledSGD(0.5, weight_decay=0.2), lambda y, z: 0 * keras.ops.sum(z)
    )
    model.fit(np.ones((4, 8)), np.ones((4, 4)), batch_size=4, verbose=0)
    for old, new in zip(before, model.trainable_variables, strict=True):
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(new), 0.9 * old, rtol=1e-5
        )


def test_a_model_goes_on_after_loading(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile(CoupledSGD(0.1, momentum=0.9, weight_decay=0.1), "mse")
    x, y = np.ones((4, 4)), np.ones((4, 2))
    model.fit(x, y, batch_size=4, verbose=0)
    model.save(tmp_path / "model.keras")
    other = keras.saving.load_model(tmp_path / "model.keras")
    assert type(other.optimizer) is keras_tlgc.optimizers.CoupledSGD
    for m in (model, other):
        m.fit(x, y, batch_size=4, verbose=0)
    for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
