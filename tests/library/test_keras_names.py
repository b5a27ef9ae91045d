"""Each private name of Keras is there, does its part, and is used in one place.

A failure here says what breaks on a Keras that has renamed or removed a name.
The file is longer than others since each name has a test of its own.
"""

import ast
import contextlib
import functools
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_tlgc
from keras_tlgc import _keras
from keras_tlgc.sharding.per_shard import can_split

on_jax = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="only used on JAX"
)
on_meshes = pytest.mark.skipif(
    not can_split(), reason="this Keras has no meshes here"
)


@contextlib.contextmanager
def needed_for(what):
    """Tell from any failure what it is that needs the private name."""
    try:
        yield
    except Exception as error:
        pytest.fail(
            f"Keras {keras.__version__} has changed ({error!r}), so that "
            f"this breaks: {what}. Mend the function in keras_tlgc/_keras.py.",
            pytrace=False,
        )


def nested_model():
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    return keras.Sequential([keras.Input((4,)), inner])


@contextlib.contextmanager
def one_process():
    """Begin a run of one process: PyTorch has meshes in a run alone."""
    if keras.backend.backend() != "torch":
        yield
        return
    from torch import distributed

    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()


@needed_for("convert, fold_batch_norm, audit and count_params find no layers")
def test_parts_of():
    model = nested_model()
    parts = _keras.parts_of(model)
    assert parts[0] is model
    assert model.layers[0].layers[0] in parts


@needed_for("layers whose get_config is wrong are not copied")
def test_constructor_arguments():
    made = _keras.constructor_arguments(keras.layers.Dense(3, name="a"))
    assert made["units"] == 3 and "name" not in made
    layer = keras.layers.Dense(3, activation=keras.ops.relu)
    assert _keras.constructor_arguments(layer) is None


@needed_for("convert does not find the layers within composite ones")
def test_children_of():
    model = nested_model()
    assert model.layers[0] in _keras.children_of(model)
    assert model.layers[0].layers[0] not in _keras.children_of(model)


@needed_for("convert writes layers out that add losses, and loses these")
def test_added_losses():
    class Adds(keras.layers.Layer):
        def call(self, inputs):
            self.add_loss(keras.ops.sum(inputs))
            return inputs

    layer = Adds()
    layer(np.ones((2, 3)))
    assert len(_keras.added_losses(layer)) == 1
    assert not _keras.added_losses(keras.layers.Dense(3))


@needed_for("convert loses the layers within layers that it copies")
def test_attributes_of():
    layer = keras.layers.TimeDistributed(keras.layers.Dense(3), name="each")
    attributes = _keras.attributes_of(layer)
    assert attributes["layer"] is layer.layer
    assert attributes["name" if "name" in attributes else "_name"] == "each"


@needed_for("convert and fold_batch_norm copy Lambda layers without a shape")
def test_lambda_output_shape():
    layer = keras.layers.Lambda(abs, output_shape=(3,))
    assert tuple(_keras.lambda_output_shape(layer)) == (3,)


@needed_for("enable_lora adds no kernels to a layer that is built")
def test_unlocked():
    layer = keras.layers.Dense(3)
    layer.build((None, 4))
    with pytest.raises(ValueError, match="cannot add new elements of state"):
        layer.add_weight(shape=(1,))
    with _keras.unlocked(layer):
        layer.more = layer.add_weight(shape=(1,))
    assert len(layer.weights) == 3
    with pytest.raises(ValueError, match="cannot add new elements of state"):
        layer.add_weight(shape=(1,))


@needed_for("convert, fold_batch_norm and model_costs take no Sequential")
def test_functional_of():
    model = nested_model()
    functional = _keras.functional_of(model)
    assert functional is not model
    assert model.layers[0] in functional.layers
    assert _keras.functional_of(functional) is functional


@needed_for("convert, fold_batch_norm and model_costs cannot read a model")
def test_nodes_by_depth():
    x = keras.Input((4,))
    dense = keras.layers.Dense(3)
    nodes = _keras.nodes_by_depth(keras.Model(x, keras.ops.abs(dense(x))))
    assert [len(nodes[depth]) for depth in sorted(nodes)] == [1, 1, 1]
    node = nodes[1][0]
    assert node.operation is dense
    assert node.input_tensors[0] is x
    assert node.arguments.args == (x,)
    assert node.output_tensors[0].shape == (None, 3)


@needed_for("convert and fold_batch_norm add calls to the model they copy")
def test_without_calls():
    x = keras.Input((4,))
    model = keras.Model(x, keras.ops.expand_dims(x, 1))
    [node] = _keras.nodes_by_depth(model)[0]
    new = _keras.without_calls(node.operation)
    assert type(new) is type(node.operation)
    assert new(x).shape == (None, 1, 4)
    again = keras.Model(x, node.operation(x))
    assert len(_keras.nodes_by_depth(again)[0]) == 1


@needed_for("convert writes a layer out that is called with a mask")
def test_has_mask():
    x = keras.Input((4,), dtype="int32")
    masking = keras.layers.Embedding(5, 2, mask_zero=True)
    assert _keras.has_mask(masking(x))
    assert not _keras.has_mask(keras.layers.Embedding(5, 2)(x))


@on_jax
@needed_for("fit on a mesh loses weights in an error; save gathers none")
def test_stored_value():
    variable = keras.Variable(np.ones(3))
    value = _keras.stored_value(variable)
    assert value is variable.value


@on_jax
@needed_for("fit on a mesh loses weights in an error; save gathers none")
def test_store_value():
    variable = keras.Variable(np.ones(3))
    _keras.store_value(variable, None)
    assert _keras.stored_value(variable) is None
    _keras.store_value(variable, keras.ops.zeros(3))
    assert keras.ops.convert_to_numpy(variable).tolist() == [0, 0, 0]


def tiny_mesh():
    return keras.distribution.DeviceMesh((1, 1), ("batch", "model"), ["cpu:0"])


def model_parallel(rules):
    layout_map = keras.distribution.LayoutMap(tiny_mesh())
    for rule, axes in rules.items():
        layout_map[rule] = axes
    return keras.distribution.ModelParallel(
        layout_map=layout_map, batch_dim_name="batch"
    )


@on_jax
@needed_for("fit does not refuse a model that was made on another mesh")
def test_stored_layout():
    with model_parallel({".*kernel.*": (None, "model")}).scope():
        variable = keras.Variable(np.ones((2, 2)), name="kernel")
    assert "model" in str(_keras.stored_layout(variable))
    assert _keras.stored_layout(keras.Variable(1.0)) is None


@on_jax
@needed_for("audit_network compiles for variables that are not split")
def test_store_layout():
    variable = keras.Variable(np.ones((2, 2)))
    layout = keras.distribution.TensorLayout((None, "model"), tiny_mesh())
    _keras.store_layout(variable, layout)
    assert _keras.stored_layout(variable) is layout


@on_jax
@needed_for("audit does not warn of wrong rules; audit --rule adds none")
def test_layout_map_of():
    distribution = model_parallel({"kernel": (None, "model")})
    assert list(_keras.layout_map_of(distribution)) == ["kernel"]
    mesh = keras.distribution.DeviceMesh((1,), ("batch",), ["cpu:0"])
    data_parallel = keras.distribution.DataParallel(device_mesh=mesh)
    assert _keras.layout_map_of(data_parallel) is None


@needed_for("audit counts no variables of metrics")
def test_build_metrics():
    model = nested_model()
    model.compile("sgd", "mse", metrics=["mae"])
    _keras.build_metrics(model, (np.ones((2, 4)), np.ones((2, 3)), None))
    assert any("mean_absolute_error" in v.path for v in model.metrics_variables)


def passed_through(seen):
    """Return a wrapper that notes what it is called with."""

    def wrap(function):
        @functools.wraps(function)
        def wrapped(*args, **kwargs):
            seen.append(args)
            return function(*args, **kwargs)

        return wrapped

    return wrap


def fit_a_model():
    model = nested_model()
    model.compile("sgd", "mse")
    model.fit(np.ones((2, 4)), np.ones((2, 3)), verbose=0)
    return model


@on_meshes
@needed_for("batches that a mesh cannot split reach the backend unchecked")
def test_wrap_batches():
    seen = []
    undo = _keras.wrap_batches(passed_through(seen))
    with one_process(), model_parallel({}).scope():
        fit_a_model()
        x, y = seen[0][0]
        assert (x.shape, y.shape) == ((2, 4), (2, 3))
        undo()
        seen.clear()
        fit_a_model()
    assert not seen


@on_jax
@needed_for("an error amid fit on a mesh costs a model its weights")
def test_wrap_purge():
    seen = []
    undo = _keras.wrap_purge(passed_through(seen))
    model = fit_a_model()
    undo()
    assert seen
    assert all(args[0] is model for args in seen)
    assert "_purge_model_variables" not in vars(keras.Model)


@on_meshes
@needed_for("what goes wrong on a mesh is not guarded against")
def test_wrap_set_distribution():
    seen = []
    distribution = model_parallel({})
    undo = _keras.wrap_set_distribution(passed_through(seen))
    keras.distribution.set_distribution(distribution)
    assert ("distribution", distribution) in seen
    seen.clear()
    undo()
    keras.distribution.set_distribution(None)
    assert not seen


def test_replace_attribute():
    class Base:
        def call(self):
            return 1

    class Part(Base):
        pass

    undo = _keras.replace_attribute(Part, "call", lambda call: lambda self: 2)
    assert (Base().call(), Part().call()) == (1, 2)
    undo()
    assert Part().call() == 1
    assert "call" not in vars(Part)
    undo = _keras.replace_attribute(Base, "call", lambda call: lambda self: 2)
    other = Base.call = lambda self: 3  # Somebody else's.
    undo()
    assert Base.call is other


@on_meshes
@needed_for("ModelParallel(layout_map=get_layout_map(...)) splits by names")
def test_variable_asked_for():
    found = []

    class Map(keras.distribution.LayoutMap):
        def __getitem__(self, key):
            found.append(_keras.variable_asked_for())
            return super().__getitem__(key)

    variable = keras.Variable(np.ones(2))
    layout_map = Map(tiny_mesh())
    distribution = keras.distribution.ModelParallel(layout_map=layout_map)
    distribution.get_variable_layout(variable)
    layout_map[variable.path]
    assert found[0] is variable
    assert found[1:] == [None]


@needed_for("GroupParallel does not know layers, and splits nothing")
def test_maker_of():
    found = {}

    class Noting(keras.initializers.Initializer):
        def __call__(self, shape, dtype=None):
            made.append(None)
            return keras.ops.zeros(shape, dtype)

    made = []
    dense = keras.layers.Dense(3, kernel_initializer=Noting(), name="dense")
    dense.build((None, 4))
    assert made
    model = nested_model()
    inner = model.layers[0]
    with _keras.named_as(model):
        for variable in model.variables:
            found[variable.path] = _keras.maker_of(variable)
    assert set(found.values()) == set(inner.layers)
    assert _keras.maker_of(dense.kernel) is None


@needed_for("audit_network does not know layers")
def test_named_as():
    layer = keras.layers.Dense(3, name="outer")
    with _keras.named_as(layer):
        assert keras.Variable(np.ones(2), name="x").path == "outer/x"


@pytest.mark.backends("torch", reason="others have no DTensor")
@needed_for("convolutions of Keras on a mesh of PyTorch fail or are wrong")
def test_handle_on_mesh(monkeypatch):
    import torch
    from torch import distributed
    from torch.distributed.tensor import DTensor, distribute_tensor

    dispatcher = DTensor._op_dispatcher
    handlers = dict(dispatcher._custom_op_handlers)
    monkeypatch.setattr(dispatcher, "_custom_op_handlers", handlers)
    seen = []

    def handle(otherwise, operation, args, kwargs):
        seen.append(operation)
        return otherwise(operation, args, kwargs)

    operation = torch.ops.aten.convolution.default
    _keras.handle_on_mesh(operation, handle)
    _keras.handle_on_mesh(operation, handle)
    with one_process():
        mesh = distributed.init_device_mesh("cpu", (1,))
        x, kernel = (
            distribute_tensor(torch.ones(1, 1, size, size), mesh)
            for size in (3, 2)
        )
        outputs = torch.nn.functional.conv2d(x, kernel).to_local()
        assert outputs.tolist() == [[[[4, 4], [4, 4]]]]
    assert seen == [operation]


@pytest.mark.backends("torch", reason="others have no DTensor")
@on_meshes
@needed_for("the audit on PyTorch sees nothing move")
def test_observed():
    import torch
    from torch import distributed
    from torch.distributed.tensor import distribute_tensor

    seen = []
    with one_process():
        mesh = distributed.init_device_mesh("cpu", (1,))
        x = distribute_tensor(torch.ones(2), mesh)
        with _keras.observed(lambda operation, *_: seen.append(operation)):
            total = x + torch.ones(2)  # One on the mesh, one not.
    assert total.to_local().tolist() == [2, 2]
    assert torch.ops.aten.add.Tensor in seen


@on_jax
@needed_for("after an error amid fit on a mesh the model has lost its weights")
def test_sync_state():
    model = nested_model()
    model.compile("sgd", "mse")
    values = []

    def synced(batch, logs):
        _keras.sync_state(model)
        values.append(keras.ops.convert_to_numpy(model.weights[0]))

    model.fit(
        np.ones((4, 4)),
        np.ones((4, 3)),
        batch_size=2,
        verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=synced)],
    )
    assert len(values) == 2
    assert not np.array_equal(*values)


@needed_for("CoupledSGD decays weights twice, or has no momentum")
def test_SGDWithoutDecay():
    variables = [keras.Variable(np.ones(2), name=name) for name in "ab"]
    optimizer = _keras.SGDWithoutDecay(0.1, momentum=0.9, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["b"])
    optimizer.build(variables)
    assert [optimizer.decays(v) for v in variables] == [True, False]
    assert optimizer.slot_of(["first", "second"], variables[1]) == "second"
    optimizer.apply([keras.ops.zeros(2), keras.ops.zeros(2)])
    assert keras.ops.convert_to_numpy(variables[0]).tolist() == [1, 1]


def test_a_name_that_is_gone_says_what_breaks():
    with (
        pytest.raises(
            pytest.fail.Exception,
            match=r"has changed \(AttributeError.*so that this breaks: saving",
        ),
        needed_for("saving"),
    ):
        raise AttributeError("no attribute '_gone'")


# No other module touches a private name of somebody else's.

ROOTS = [Path(p) for p in keras_tlgc.__path__]
ROOTS += [Path(p) for p in keras_tlgc.applications.__path__]
# Of a `NamedTuple`, and `os._exit`.
PUBLIC = {"_asdict", "_fields", "_replace", "_exit"}
BY_NAME = {"getattr", "hasattr", "setattr", "delattr"}
BY_NAME |= {"__getattr__", "__setattr__", "__delattr__"}


def modules():
    """Yield the path and the syntax of each module but `_keras.py`."""
    for root in ROOTS:
        for path in sorted(root.rglob("*.py")):
            if path.name != "_keras.py":
                yield path, ast.parse(path.read_text())


def is_private(name):
    return name.startswith("_") and not name.endswith("__")


def own_names():
    """Return the private names that the classes of the package define."""
    names = set()
    for _, tree in modules():
        for cls in ast.walk(tree):
            for node in ast.walk(cls) if isinstance(cls, ast.ClassDef) else ():
                if isinstance(node, ast.FunctionDef):
                    names.add(node.name)
                elif isinstance(node, ast.Attribute | ast.Name) and isinstance(
                    node.ctx, ast.Store
                ):
                    names.add(getattr(node, "attr", None) or node.id)
    return set(filter(is_private, names))


def foreign_names(tree, own):
    """Yield the private names of others that a module touches."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=owner, attr=name) if is_private(name):
                is_own = isinstance(owner, ast.Name) and name in own
                if not (is_own and owner.id in ("self", "cls")):
                    yield node.lineno, name
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
                for arg in node.args if name in BY_NAME else ():
                    if isinstance(arg, ast.Constant) and is_private(
                        str(arg.value)
                    ):
                        yield node.lineno, arg.value
            case ast.ImportFrom(module=module, names=names):
                path = [*(module or "").split("."), *(n.name for n in names)]
                if path[0] != "keras_tlgc" and (
                    "src" in path or any(map(is_private, path))
                ):
                    yield node.lineno, ".".join(path)
            case ast.Import(names=names):
                for path in (n.name.split(".") for n in names):
                    if "src" in path or any(map(is_private, path)):
                        yield node.lineno, ".".join(path)


def test_no_other_module_touches_a_private_name():
    own = own_names()
    found = [
        f"{path.name}:{line} touches {name}"
        for path, tree in modules()
        for line, name in foreign_names(tree, own)
        if name not in PUBLIC
    ]
    assert not found, "Put each into a function of keras_tlgc/_keras.py."


@pytest.mark.parametrize(
    "source",
    [
        "layer._layers",
        "self._layers",
        "getattr(model, '_functional', model)",
        "object.__setattr__(layer, '_name', 'other')",
        "from keras.src import backend",
        "from keras.src.backend.jax import trainer",
        "import jax._src.core",
        "from jax import _src",
    ],
)
def test_what_is_found(source):
    assert list(foreign_names(ast.parse(source), own={"_kernel"}))


@pytest.mark.parametrize(
    "source",
    ["self._kernel", "self.__class__", "from keras_tlgc import _keras"],
)
def test_what_is_not_found(source):
    assert not list(foreign_names(ast.parse(source), own={"_kernel"}))


def test_own_private_names_are_not_those_of_keras():
    """Neither a method nor an attribute of ours replaces one of Keras'."""
    model = nested_model()
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer.build(model.trainable_variables)
    layout_map = keras.distribution.LayoutMap(tiny_mesh())
    objects = keras.layers.Layer(), model, optimizer, layout_map
    taken = {name for one in objects for name in dir(one)}
    assert own_names() & taken == set()


def test_each_function_has_a_test():
    for name, value in vars(_keras).items():
        if getattr(value, "__module__", "") == _keras.__name__:
            assert f"test_{name}" in globals(), name


@needed_for("convolutions cannot be exported to ONNX as one graph of numbers")
def test_backend_nn():
    assert callable(_keras.backend_nn().conv)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="only used on TensorFlow"
)
@needed_for("grouped convolutions cannot be exported from TensorFlow to ONNX")
def test_native_convolutions():
    import tensorflow as tf

    layer = keras.layers.Conv2D(4, 3, groups=2)
    spec = tf.TensorSpec((1, 5, 5, 4))
    layer.build(spec.shape)

    def operations():
        graph = tf.function(lambda x: layer(x)).get_concrete_function(spec)
        return {operation.type for operation in graph.graph.get_operations()}

    assert "Conv2D" not in operations()
    with _keras.native_convolutions():
        assert "Conv2D" in operations()
    assert "Conv2D" not in operations()


@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="only used on PyTorch"
)
@needed_for("ONNX files from PyTorch compute the padding of each convolution")
@pytest.mark.filterwarnings("ignore:Converting a tensor to a Python")
@pytest.mark.filterwarnings("ignore:.torch.jit.trace")
def test_padding_in_numbers():
    import torch

    layer = keras.layers.Conv2D(4, 3, strides=2, padding="same")
    x = torch.zeros(1, 8, 8, 3)
    layer(x)

    def computes():
        return "aten::floor_divide" in str(torch.jit.trace(layer, x).graph)

    assert computes()
    with _keras.padding_in_numbers():
        assert not computes()
    assert computes()
