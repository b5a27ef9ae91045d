"""Whatever an option or a file holds: one line that says so, nothing lost."""

import json
import math
import re
import shutil
import zipfile
from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np
import pytest
import typer
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from meshes import ON_JAX
from tiny import (
    Interrupt,
    settings,
    tiny_digits,
    tiny_run,  # noqa: F401  A fixture.
)

from keras_tlgc import benchmark, cli, training
from keras_tlgc.costs import without_values
from keras_tlgc.distribution.mesh import parse_mesh
from keras_tlgc.training import comparison, load_data, recipes, run
from keras_tlgc.training.data import DATASETS
from keras_tlgc.training.samples import write_samples

pytestmark = [
    pytest.mark.real_network,  # The names of networks are read, too.
    pytest.mark.usefixtures("tiny_run"),
]
ON_TWO = pytest.mark.skipif(
    keras.backend.backend() == "tensorflow",
    reason="checked before a backend is asked: on JAX, which has every "
    "command, and on PyTorch",
)
ON_ONE = pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="no backend reads these files"
)
FEW = hypothesis_settings(
    max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
HUGE = 10**18


class Validated(BaseException):
    """The arguments were taken: what follows takes long, and is stubbed."""


def stop(*arguments, **options):
    raise Validated


def tree(folder):
    """Return all that is below a folder: names, and what files hold."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        if path.is_file()
        else None
        for path in sorted(folder.rglob("*"))
    }


def outcome(capsys, *arguments):
    """Run a command here; return its status and what it says of bad input.

    An exception, which would be a traceback, fails the test.
    """
    capsys.readouterr()
    try:
        status = cli.run([str(argument) for argument in arguments])
    except SystemExit as exit_:
        status = exit_.code
    except Validated:
        status = Validated
    captured = capsys.readouterr()
    if status == 2:
        assert captured.err.startswith("keras-tlgc: error: ")
        assert captured.err.count("\n") == 1
        assert captured.out == ""
    return status, captured.err


# --- Options


NETWORK = ["--model", "WideResNet", "--depth", "10", "--width", "1"]
TINY = ["--data", "tiny", "--model", "plain-1-8", "--conv", "group"]
TINY += ["--groups", "1", "--batch-size", "8", "--epochs", "2"]
# What every command can be given, before the option that is fuzzed.
BEFORE = {
    "train": TINY,
    "compare": [*TINY, "--seeds", "0"],
    "params": [*NETWORK, "--conv", "group"],
    "audit": [*NETWORK, "--mesh", "1x1"],
    "plan": [*NETWORK, "--devices", "1", "--conv", "group"],
    "benchmark": [*NETWORK, "--conv", "group"],
    "convert": ["in.keras", "out.keras"],
}
NUMBERS = ["", "x", "-1", "0", "1.5", str(HUGE), "9" * 5000, "nan", "inf"]
TEXTS = ["", "x" * 5000, "\u0663\u202e[/x]", "a\nb", ",", "1,,1", "1,1", "-1"]
TEXTS += [str(HUGE)]
PATHS = ["", "folder", "nowhere/x", "file", "file/x", "x" * 300, "a\n\u0663"]
BAD_RULES = ["kernel", "=model", "[=model", "(=", "x=nothing", "x{2,1}=model"]
BAD_RULES += ["x=model,,model"]
# More values for options of a name, by the name of the parameter.
MORE = {
    "model": [
        *(f"wrn-10-{HUGE}", f"wrn-{HUGE}-1", "wrn-10-" + "9" * 5000),
        *(f"wrn-imagenet-10-{HUGE}", "wrn-4-1", "wrn-11-1", "plain-0-8"),
        *(f"plain-{HUGE}-8", f"plain-1-{HUGE}", f"mobilenetv2-{HUGE}"),
        *("mobilenetv2-0", "WideResNet50", "none.keras", "file.keras"),
    ],
    "mesh": ["0x1", "1x1x1", "-1x1", f"1x{HUGE}", f"{HUGE}x1", "999999x999"],
    "devices": ["0", "1,x", "999999999"],
    "drops": ["nan", "inf", "0.5,0.5", "0.6,0.3", "1", "0.1,"],
    "learning_rate": ["1e400", "-1e-9"],
    "rule": BAD_RULES,
    "where": ["[", "(?P<", "a{99999999999}"],
    "alpha": ["1e-9", "1e300"],
}


def every_option():
    app = typer.main.get_command(cli.app)
    for name, command in app.commands.items():
        for option in command.params:
            yield pytest.param(name, option, id=f"{name}-{option.name}")


def values_of(option):
    kind = option.type_descriptor.annotation
    if kind is bool:
        return [None]
    lists = {int: NUMBERS, float: NUMBERS, Path: PATHS}
    return [*lists.get(kind, TEXTS), *MORE.get(option.name, [])]


def arguments_of(command, option, value):
    before = BEFORE[command]
    if option.param_type_name == "argument":
        given = {"source": "in.keras", "target": "out.keras"}
        before = list({**given, option.name: value}.values())
        return [command, "--groups", "4", *before]
    if option.name == "alpha":
        before = ["--model", "MobileNetV2"]
    if command == "convert" and option.name not in ("groups", "up_to"):
        before = [*before, "--groups", "4"]
    if command in ("train", "compare"):
        before = [*before, "--output", "out"]
    return [command, *before, option.opts[0], *([value] if value else [])]


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """End each command where its long part begins; give it files to name."""

    def build(make, *arguments):
        without_values(make)
        raise Validated

    monkeypatch.setattr(run, "_fit", stop)
    monkeypatch.setattr(comparison, "train", stop)
    monkeypatch.setattr(cli, "convert_model", stop)
    monkeypatch.setattr(cli, "audit_network", build)
    monkeypatch.setattr(cli, "compile_network", build)
    monkeypatch.setattr(benchmark.layers, "attained", lambda _: (1e9, 1e9))
    for module in (benchmark.layers, benchmark.networks):
        monkeypatch.setattr(module, "fill", stop)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")
    for name in ("file", "file.keras"):
        (tmp_path / name).write_text("mine")
    keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]).save(
        "in.keras"
    )
    return tmp_path


def test_every_command_is_fuzzed():
    assert set(BEFORE) == set(typer.main.get_command(cli.app).commands)


@ON_TWO
@pytest.mark.parametrize(("command", "option"), [*every_option()])
def test_options(quick, capsys, command, option):
    """Refused in one line and with nothing written, or taken."""
    before = tree(quick)
    for value in values_of(option):
        arguments = arguments_of(command, option, value)
        status, _ = outcome(capsys, *arguments)
        assert status in (0, 2, Validated), arguments
        if status != 2:  # A run that began may have written: not over ours.
            after = tree(quick)
            assert before.items() <= after.items()
            for name in set(after) - set(before):
                path = quick / name
                if not path.exists():
                    continue  # It went with its folder.
                shutil.rmtree(path, True) if path.is_dir() else path.unlink()
        assert tree(quick) == before, arguments


REFUSED = [
    (["train", *TINY, "--epochs", HUGE], "must be fewer than 2**31. Received"),
    (["compare", *TINY, "--epochs", HUGE], "steps of a run must be fewer"),
    (["train", *TINY, "--image-size", HUGE], "`image_size` must be at most"),
    (["train", *TINY, "--model", f"wrn-{HUGE}-1"], "`model` must be at most"),
    (
        ["train", *TINY, "--coarse-channels", HUGE],
        "`coarse_channels` must be at most 10000",
    ),
    (["params", *NETWORK, "--depth", HUGE], "`depth` must be at most 10000"),
    (["params", *NETWORK, "--width", HUGE], "`width` must be at most 10000"),
    (["params", *NETWORK, "--classes", HUGE], "`classes` must be at most 1000"),
    (["benchmark", *NETWORK, "--batch-size", HUGE], "`batch_size` must be at"),
    (["benchmark", *NETWORK, "--depth", "11"], "`depth` must be 6 b + 4"),
    (
        ["benchmark", *NETWORK, "--output", "folder"],
        "--output must be a file in a folder that can be written",
    ),
    (
        ["convert", "in.keras", "folder.keras", "--groups", "4", "--overwrite"],
        "OUT.keras must be a file in a folder that can be written",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=range(12))
def test_what_is_said(quick, capsys, arguments, message):
    (quick / "folder.keras").mkdir()
    status, line = outcome(capsys, *arguments)
    assert status == 2
    assert message in line


@ON_JAX
@pytest.mark.parametrize("rule", BAD_RULES)
def test_bad_rules(quick, capsys, rule):
    status, line = outcome(capsys, "audit", *BEFORE["audit"], "--rule", rule)
    assert status == 2
    assert "--rule must be a regular expression" in line


@given(st.text("0123456789xX-+.,e \u0663", max_size=12))
@FEW
def test_text_of_a_mesh(text):
    try:
        sizes = parse_mesh(text)
    except ValueError as error:
        assert "A mesh must be two positive integers" in str(error)
    else:
        assert all(0 < size < 10**9 for size in sizes)


@given(st.floats(), st.integers(), st.integers(1, 10**9))
@FEW
def test_numbers_of_a_recipe(number, integer, steps):
    """What is taken makes an optimizer of finite rates."""
    for name, value in [
        ("learning_rate", number),
        ("momentum", number),
        ("weight_decay", number),
        ("drops", [number]),
        ("epochs", integer),
    ]:
        try:
            recipe = recipes.Recipe(**{name: value})
            optimizer = recipe.optimizer(steps)
        except ValueError as error:
            assert "Received: " in str(error)
        else:
            assert math.isfinite(float(optimizer.learning_rate))


def test_too_large_for_memory(capsys, monkeypatch):
    def lacking(*arguments, **options):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating 9")

    monkeypatch.setattr(cli, "model_costs", lacking)
    status, line = outcome(capsys, "params", *NETWORK)
    assert status == 2
    assert "must fit into memory. Received: RuntimeError: RESOURCE_EXH" in line

    def broken(*arguments, **options):
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(cli, "model_costs", broken)
    with pytest.raises(RuntimeError, match="a bug of ours"):
        cli.run(["params", *NETWORK])


# --- The files of a run


SETTINGS = {"model": "plain-1-8", "conv": "group", "groups": 1, "epochs": 2}
WRONG = [None, "x", -1, HUGE, math.nan, math.inf, [], {"a": 1}, "../..", True]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run, one that was interrupted, and a finished comparison."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS, "tiny", tiny_digits)
        training.train(settings(**SETTINGS), folder / "finished", verbose=0)
        with pytest.raises(Interrupt.Kill):
            training.train(
                settings(**SETTINGS),
                folder / "killed",
                verbose=0,
                callbacks=[Interrupt(1, 2)],
            )
        compared = training.Comparison(
            convs=["group"],
            groups=[1],
            seeds=[0],
            recipe={
                "data": "tiny",
                "model": "plain-1-8",
                "epochs": 2,
                "batch_size": 16,
            },
        )
        training.compare(compared, folder / "compared")
    return folder


@pytest.fixture
def copied(runs, tmp_path):
    """Return what copies one of the folders."""

    def copy(name):
        shutil.rmtree(tmp_path / name, True)
        return Path(shutil.copytree(runs / name, tmp_path / name))

    return copy


def assert_refused(capsys, folder, command, *messages):
    before = tree(folder)
    status, line = outcome(capsys, command, "--resume", "--output", folder)
    assert status == 2, line
    for message in messages:
        assert message in line
    assert tree(folder) == before


TEXTS_OF_JSON = ["", "{", "[]", "null", "{}", '{"settings": 5}', "NaN", "\0"]
TEXTS_OF_JSON += ["[" * 100_000, '{"a": ' * 100_000, "9" * 5000, "\ufeff{}"]


@ON_ONE
@pytest.mark.parametrize("text", TEXTS_OF_JSON, ids=lambda text: repr(text[:9]))
@pytest.mark.parametrize(
    ("name", "command"), [("finished", "train"), ("compared", "compare")]
)
def test_configurations_that_are_none(copied, capsys, name, command, text):
    folder = copied(name)
    (folder / "config.json").write_text(text, "utf-8")
    assert_refused(capsys, folder, command, "config", "cannot be read")
    (folder / "config.json").write_bytes(b"\xff\xfe{}")
    assert_refused(capsys, folder, command, "config", "cannot be read")
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    assert_refused(capsys, folder, command, "config", "cannot be read")


# The names of settings for which some of the values are right ones.
HARMLESS = ["groups", "data_dir", "seed", "learning_rate", "drops"]
HARMLESS += ["weight_decay"]


@pytest.mark.parametrize(
    "key", [*training.Settings.__dataclass_fields__, "more"]
)
def test_wrong_settings_of_a_run(copied, capsys, key):
    """A finished run goes on as it was, or it is told what is wrong."""
    folder = copied("finished")
    path = folder / "config.json"
    whole = json.loads(path.read_text())
    for value in WRONG:
        changed = {**whole["settings"], key: value}
        path.write_text(json.dumps({**whole, "settings": changed}))
        before = tree(folder)
        status, line = outcome(capsys, "train", "--resume", "--output", folder)
        assert status == 2 or key in HARMLESS, value
        assert status in (0, 2), line
        assert tree(folder) == before
    whole["settings"].pop(key, None)
    path.write_text(json.dumps(whole))
    status, _ = outcome(capsys, "train", "--resume", "--output", folder)
    assert status in (0, 2)


KEYS = ["convs", "groups", "coarse_channels", "seeds", "recipe", "versions"]


@ON_ONE
@pytest.mark.parametrize("key", [*KEYS, "model_parallel", "more"])
def test_wrong_settings_of_a_comparison(copied, capsys, key):
    folder = copied("compared")
    path = folder / "config.json"
    whole = json.loads(path.read_text())
    for value in [*WRONG, [None], [math.nan], ["x"], [[1]], [HUGE], [-1], [{}]]:
        if key == "model_parallel" and value is True:
            continue  # A valid one.
        path.write_text(json.dumps({**whole, key: value}))
        assert_refused(capsys, folder, "compare")


def test_histories_that_were_cut(copied, capsys):
    """Before the run goes on, and not at its end."""
    for name in ("finished", "killed"):
        folder = copied(name)
        whole = (folder / "history.csv").read_bytes()
        head, first = whole.splitlines(keepends=True)[:2]
        for text in [
            *(b"", head, head[:9], whole[:-2][: len(head) + 9], b"\0" * 99),
            *(head + first.replace(b"0,", b"x,", 1), b"\xff" + whole),
            *(head + first.replace(b"0,", b"5,", 1), first, head + first),
        ]:
            if name == "killed" and text == head + first:
                continue  # All that it had.
            (folder / "history.csv").write_bytes(text)
            assert_refused(capsys, folder, "train", "history must have a row")
        (folder / "history.csv").unlink()
        assert_refused(capsys, folder, "train", "history must have a row")


def test_checkpoints_that_were_cut(copied, capsys):
    folder = copied("killed")
    path = folder / "checkpoint.weights.h5"
    whole = path.read_bytes()
    for text in (b"", b"text", whole[:99], whole[: len(whole) // 2], whole[1:]):
        path.write_bytes(text)
        assert_refused(
            capsys, folder, "train", "needs the checkpoint that the run wrote"
        )
    other = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    other.save_weights(path)
    assert_refused(capsys, folder, "train", "needs the checkpoint")
    # The remedy that the message names.
    path.unlink()
    assert outcome(capsys, "train", "--resume", "--output", folder)[0] == 0


def test_times_that_were_cut(copied, capsys):
    """They decide nothing: what cannot be read is left out."""
    folder = copied("killed")
    for text in (b"", b"epoch,seconds\n0,", b"\xff\n0,nan\nx,1\n1", b"\0" * 9):
        (folder / "times.csv").write_bytes(text)
        assert training.RunFolder(folder).seconds() == []
    (folder / "times.csv").write_text("epoch,seconds\n0,1.5\n1,2.5\n1,3.")
    assert training.RunFolder(folder).seconds() == [1.5, 2.5]


def test_a_comparison_of_damaged_runs(copied, capsys):
    """A failure in the table, and the run is not trained over."""
    folder = copied("compared")
    path = next(folder.glob("runs/*/history.csv"))
    before = tree(path.parent)
    for text in (b"", b"x", path.read_bytes()[:30]):
        path.write_bytes(text)
        capsys.readouterr()
        with pytest.raises(SystemExit, match="2"):
            cli.run(["compare", "--resume", "--output", str(folder)])
        captured = capsys.readouterr()
        assert "1 of 1 runs failed" in captured.err
        assert "Traceback" not in captured.out + captured.err
        after = {**tree(path.parent), "history.csv": before["history.csv"]}
        assert after == before


# --- Models


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "model.keras"
    model = keras.Sequential(
        [keras.Input((6, 6, 8)), keras.layers.Conv2D(8, 3), keras.layers.ReLU()]
    )
    model.save(path)
    return path


def rewritten(source, target, changes):
    """Write a .keras file with other members; `None` leaves one out."""
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in {**members, **changes}.items():
            if data is not None:
                archive.writestr(name, data)
    return members


def assert_no_model(capsys, path, message="that Keras can load"):
    """Neither `convert` nor, on JAX, `audit` takes the file."""
    before = tree(path.parent)
    commands = [["convert", path, path.with_name("out.keras"), "--groups", "4"]]
    if keras.backend.backend() == "jax":
        commands.append(["audit", "--model", path, "--mesh", "1x1"])
    for command in commands:
        status, line = outcome(capsys, *command)
        assert status == 2
        assert message in line.replace("be one that", "be a model that")
        assert len(line) < 1000
    assert tree(path.parent) == before


def test_files_that_are_no_model(tmp_path, capsys, model_file):
    whole = model_file.read_bytes()
    path = tmp_path / "model.keras"
    for text in (b"", b"text", whole[: len(whole) // 2], whole[:-1], b"PK"):
        path.write_bytes(text)
        assert_no_model(capsys, path, "which is not one")
    path.unlink()
    assert_no_model(capsys, path, "which does not exist")
    path.mkdir()
    assert_no_model(capsys, path, "which is not one")


WEIGHTS, CONFIG = "model.weights.h5", "config.json"
MEMBERS = [
    *((CONFIG, data) for data in (None, b"", b"{", b"[]", b"null", b"{}")),
    *((CONFIG, data) for data in (b"\xff\xfe", b"NaN", b"[" * 100_000)),
    *((WEIGHTS, data) for data in (None, b"", b"text", b"\x89HDF\r\n\x1a\n")),
]


@pytest.mark.parametrize(("name", "data"), MEMBERS, ids=lambda x: repr(x)[:20])
def test_models_with_damaged_members(tmp_path, capsys, model_file, name, data):
    path = tmp_path / "model.keras"
    members = rewritten(model_file, path, {name: data})
    assert_no_model(capsys, path)
    if data is None and name == WEIGHTS:
        cut = members[name]
        for part in (cut[:99], cut[: len(cut) // 2], cut[:-99]):
            rewritten(model_file, path, {name: part})
            assert_no_model(capsys, path)


@given(st.data())
@FEW
def test_models_with_other_values(tmp_path, capsys, model_file, data):
    """Any value in the place of any other of the configuration."""
    path, target = tmp_path / "model.keras", tmp_path / "out.keras"
    with zipfile.ZipFile(model_file) as archive:
        config = json.loads(archive.read(CONFIG))
    places = list(places_of(config))
    container, key = data.draw(st.sampled_from(places))
    container[key] = data.draw(st.sampled_from(WRONG))
    rewritten(model_file, path, {CONFIG: json.dumps(config)})
    status, _ = outcome(capsys, "convert", path, target, "--groups", "4")
    assert status in (0, 2)
    assert target.exists() == (status == 0)
    target.unlink(missing_ok=True)


def places_of(value):
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items):
        yield value, key
        if isinstance(inner, dict | list):
            yield from places_of(inner)


def test_weights_that_are_not_finite(tmp_path, capsys, model_file):
    model = keras.saving.load_model(model_file)
    for number in (np.nan, np.inf):
        for variable in model.weights:
            variable.assign(np.full(variable.shape, number, "float32"))
        model.save(tmp_path / "in.keras")
        status, _ = outcome(
            capsys,
            *("convert", tmp_path / "in.keras", tmp_path / "out.keras"),
            *("--groups", "4"),
        )
        assert status == 2
        assert not (tmp_path / "out.keras").exists()


# --- Experiments


CONFIGS = sorted(
    (Path(__file__).parent.parent / "examples" / "paper").glob("*.toml")
)
VALUES = ["nan", "-1", "inf", '""', "[]", "[[]]", "{a = 1}", "true", str(HUGE)]
VALUES += ["1979-05-27", '"x"', "[" * 5000, "", '"""', "9" * 5000, "[1, 1]"]


def mutations(text):
    """Yield the text of a file without, and with other values of, each line."""
    lines = text.splitlines()
    for i, line in enumerate(lines):
        others = [""]
        if " = " in line:
            key = line.split(" = ")[0]
            others += [f"{key} = {value}" for value in VALUES]
            others += [f"x{line}", f"{line}\n{line}", line[:-1]]
        for other in others:
            yield "\n".join([*lines[:i], other, *lines[i + 1 :]])


@ON_ONE
@pytest.mark.parametrize("config", CONFIGS[:1], ids=lambda path: path.stem)
def test_experiments(tmp_path, monkeypatch, capsys, config):
    def load():
        raise OSError("no network")

    for name in ("cifar10", "cifar100"):
        monkeypatch.setattr(getattr(keras.datasets, name), "load_data", load)
    monkeypatch.setitem(DATASETS, "mnist5k", tiny_digits)
    monkeypatch.setattr(comparison, "train", stop)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "config.toml"
    small = re.sub(r"wrn-[\d-]+", "wrn-10-1", config.read_text("utf-8"))
    for text in mutations(small):
        path.write_text(text, "utf-8")
        # The images are nowhere: what is well written ends at these.
        status, line = outcome(capsys, "compare", "--config", path)
        if status == Validated:  # Without its name, the data are the digits.
            shutil.rmtree(tmp_path / "runs")
            continue
        assert status == 2
        assert any(
            message in line
            for message in (
                "An experiment must be",
                "must be in Keras' cache",
                "`data='folder'` needs a folder",
            )
        )
        assert tree(tmp_path) == {"config.toml": path.read_bytes()}
    path.unlink()
    path.mkdir()
    status, line = outcome(capsys, "compare", "--config", path)
    assert status == 2 and "An experiment must be a TOML file" in line


# --- Images


@ON_ONE
@given(st.data())
@FEW
def test_cifar_files_that_were_cut(images, data):
    """Cut anywhere, or with another byte anywhere but in the pixels."""
    path = images / "cifar-10-batches-py" / "test_batch"
    whole = path.read_bytes()
    ends = [*range(200), *range(len(whole) - 200, len(whole))]
    cut = data.draw(st.sampled_from(ends))
    other = bytes([data.draw(st.integers(0, 255))])
    for text in (whole[:cut], whole[:cut] + other + whole[cut + 1 :]):
        path.write_bytes(text)
        try:
            loaded = load_data("cifar10", images)
        except ValueError as error:
            assert "test_batch', which cannot be read" in str(error)
        else:
            assert np.isfinite(loaded.x_test).all()
            assert loaded.y_test.max() < 10
        finally:
            path.write_bytes(whole)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_samples(folder)
    return folder


@pytest.mark.skipif(
    not (find_spec("keras_cv") and find_spec("tensorflow")),
    reason="needs KerasCV and TensorFlow, for ImageNet's images",
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("damage", ["empty", "cut", "gone", "folder", "text"])
def test_folders_with_damaged_images(images, tmp_path, damage):
    folder = Path(shutil.copytree(images, tmp_path / "images"))
    path = next((folder / "val").glob("*/0.jpg"))
    loaded = load_data("folder", folder, 8)
    whole = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "gone":
        texts = {"empty": b"", "cut": whole[: len(whole) // 2], "text": b"text"}
        path.write_bytes(texts[damage])
    with pytest.raises(ValueError, match=r"must be whole.*0\.jpg', which cann"):
        for i in range(2):
            loaded.test_batches(4)[i]
