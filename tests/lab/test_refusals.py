"""What the commands refuse, each with one line, before anything is written.

What the library says of a value is tested with the library.
"""

import shlex
import shutil
import zipfile

import keras
import pytest
from commands import error_of
from tiny import (
    contents,
    settings,
    tiny_digits,
    tiny_run,  # noqa: F401  A fixture.
)

from keras_tlgc.lab import train
from keras_tlgc.lab.data.sets import DATASETS

# A command, and below it a part of its line.
REFUSALS = """
train --epochs eleven
    Received: train --epochs eleven. Try --help.
train --color red
    No such option: --color
train --model wrn-28
    `model` must be of the form wrn-DEPTH-WIDTH or
train --recipe none
    `recipe` must be one of ['digits', 'cifar'
train --drops half
    --drops must be numbers with commas between
train --groups 3
    Allowed groups: [1, 2, 4, 8, 16]
train --resume
    --resume needs the folder of a run
compare --groups 2,x
    --groups must be numbers with commas between them, integers, as in 2,4,8
compare --conv ''
    `conv` must be one of
compare --seeds 1,1
    `seeds` must list at least one value, none twice
compare --resume
    --resume needs the folder of a run
params --model MobileNetV2 --groups 16
    Allowed groups: [1, 2, 4
params --model MobileNetV2 --image-size 0
    `image_size` must be
params --model MobileNetV2 --depth=16
    --depth=16. Write the network's numbers into its name: --model wrn-28
trian
    No such command 'trian'

train --conv standard --groups 1
    every option: --groups with --conv standard
train --conv group --coarse-channels 1
    every option: --coarse-channels with --conv group
train --image-size 224
    every option: --image-size with --data mnist5k
compare --conv standard --groups 2 --model-parallel
    every option: --model-parallel, --groups with --conv standard
compare --smoke
    every option: --smoke without --config
compare --config a.toml --smoke --data-dir d
    every option: --data-dir beside --smoke
compare --config a.toml --seeds 0 --epochs 3 --conv group
    every option: --conv, --seeds, --epochs beside --config
params --conv group --coarse-channels 1 --classes 9
    every option: --conv, --coarse-channels, --classes without --model
params --model MobileNetV2 --conv group,shuffle --coarse-channels 1
    every option: --coarse-channels with --conv group,shuffle
audit --model in.keras --conv group --groups 4 --classes 5 --image-size 8
    every option: --conv, --groups, --classes, --image-size beside a .keras file
plan --conv group --devices 1,2 --classes 2
    every option: --conv, --devices, --classes without --model
benchmark --classes 5 --image-size 8
    every option: --classes, --image-size without --model
benchmark --model MobileNetV2 --shapes wrn --lowerings auto
    every option: --shapes, --lowerings beside --model
benchmark --conv standard --groups 4,16
    every option: --groups with --conv standard
benchmark --conv keras --lowerings auto
    every option: --lowerings with --conv keras
convert in.keras out.keras --groups 4 --conv group --coarse-channels 1
    every option: --coarse-channels with --conv group
convert in.keras --groups 4 --dry-run --overwrite
    every option: --overwrite without OUT.keras
convert in.keras out.keras --budget 0.4 --groups 4 --conv group
    every option: --groups, --conv with --budget
convert in.keras out.keras --groups 4 --of params
    every option: --of without --budget
convert in.keras out.keras --groups 4 --mesh 1x4 --runtime onnxruntime
    every option: --runtime, --mesh without --budget
convert in.keras out.keras --budget 0.4 --runtime onnxruntime
    every option: --runtime with --of multiply_adds
convert in.keras out.keras --groups 4 --finetune 2
    every option: --finetune without --data
convert in.keras --groups 4 --data mnist5k --dry-run --finetune 2
    every option: --finetune with --dry-run

convert in.keras out.keras
    number of groups must be given once
convert in.keras out.keras --budget 0.4
    `budget` needs `data`
convert in.keras out.keras --budget 0.4 --of exchange
    `of='exchange'` needs a `mesh`
convert in.keras out.keras --budget 0.4 --of time --runtime litert
    `runtime` must be one of ['keras', 'onnxruntime']
convert in.keras out.keras --budget 0.4 --mesh 4
    A mesh must be two positive integers
convert in.keras out.keras --groups 4 --up-to 4
    must be given once. Received: --groups 4 and --up-to 4
convert in.keras out.keras --groups 4 --multiple-of 2
    --multiple-of must go with --up-to
convert in.keras --groups 4
    OUT.keras must be given
convert in.keras out.h5 --groups 4
    OUT.keras must be a file with the suffix .keras
convert in.keras nowhere/out.keras --groups 4
    in a folder that can be written. Received: nowhere/out.keras
convert in.keras pairs.keras --groups 4
    OUT.keras must not exist yet. Received: pairs.keras
convert no.keras out.keras --groups 4
    which does not exist
convert text.keras out.keras --groups 4
    which is not one
convert zip.keras out.keras --groups 4
    A model must be one that Keras can load
convert foreign.keras out.keras --groups 4
    Install the packages that its layers are from
convert lambda.keras out.keras --groups 4
    A model must hold no code. Received: lambda.keras
convert in.keras out.keras --groups 5
    There must be a convolution to convert

evaluate nowhere
    'nowhere', which does not exist. Finish
evaluate text.keras
    text.keras, which is not one
evaluate in.keras
    of one size, and give a score for each
evaluate alone.keras
    The images must be known. Received: a
evaluate run --data pairs
    shape that the model takes.
evaluate run pictures
    2 classes, and a model of 3
evaluate run pictures/a
    'pictures/a', which holds no images
evaluate run pictures --data tiny
    Images are named once
evaluate run --confusion a.txt
    --confusion must be a
evaluate run --batch-size 0
    `batch_size` must be a
predict run gone.png
    'gone.png', which does not exist
predict run empty
    There must be an image to look at
predict run --output no/a.csv
    --output must be a file
predict pairs.keras pictures
    have 1 channel or 3. Received

benchmark --shapes wide
    `shape` must be one of
benchmark --groups 0
    `groups` must be a positive integer
benchmark --runs fast
    `run` must be one of
benchmark --dtype int8
    `dtype` must be one of
benchmark --data-format nchw
    `data_format` must be one of
benchmark --lowerings fast
    `lowering` must be one of
benchmark --model WideResNet --rounds 0
    `rounds` must be a positive integer
"""
LINES = [line.strip() for line in REFUSALS.splitlines() if line]


def classifier(path, shape, *layers):
    keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.Conv2D(16, 3),
            *layers,
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3),
        ]
    ).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a run, models, and files that are none."""
    folder = tmp_path_factory.mktemp("files")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS, "tiny", tiny_digits)
        run = settings(model="plain-1-8", groups=1, epochs=1)
        train(run, folder / "run", verbose=0)
    shutil.copy(folder / "run" / "model.keras", folder / "alone.keras")
    layers = [keras.Input((6, 6, 8)), keras.layers.Conv2D(12, 3)]
    keras.Sequential(layers).save(folder / "in.keras")
    classifier(folder / "pairs.keras", (8, 8, 32))
    double = keras.layers.Lambda(lambda x: 2 * x)
    classifier(folder / "lambda.keras", (6, 6, 8), double)
    (folder / "text.keras").write_text("text")
    with zipfile.ZipFile(folder / "zip.keras", "w") as archive:
        archive.writestr("a", "b")
    with (
        zipfile.ZipFile(folder / "in.keras") as archive,
        zipfile.ZipFile(folder / "foreign.keras", "w") as foreign,
    ):
        for name in archive.namelist():
            data = archive.read(name).replace(b'"Conv2D"', b'"Conv9D"')
            foreign.writestr(name, data)
    for name in ("empty", "pictures/a", "pictures/b"):
        (folder / name).mkdir(parents=True)
    for name in "ab":
        picture = folder / "pictures" / name / "1.png"
        keras.utils.save_img(
            picture, keras.ops.ones((8, 8, 1)), data_format="channels_last"
        )
    return folder


@pytest.mark.real_network
@pytest.mark.usefixtures("tiny_run")
@pytest.mark.parametrize(
    ("command", "message"),
    list(zip(LINES[::2], LINES[1::2], strict=True)),
    ids=LINES[::2],
)
def test_refusals(folder, monkeypatch, capsys, command, message):
    monkeypatch.chdir(folder)
    before = contents(folder)
    line = error_of(capsys, *shlex.split(command))
    if message.startswith("every option: "):
        assert "Every option must change what the command does" in line
        message = message.replace("every option:", "Received:")
    assert message in line
    assert len(line) < 600
    assert contents(folder) == before
