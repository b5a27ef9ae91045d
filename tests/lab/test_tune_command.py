"""`keras-tlgc tune`."""

import pytest
from commands import error_of, output_of, rows_of
from networks import few_stages  # noqa: F401

from keras_tlgc.applications import network_builder
from keras_tlgc.ops import tuned

SIZES = ["--batch-size", 2, "--rounds", 1]


@pytest.mark.usefixtures("few_stages")
def test_networks_and_files(tmp_path, capsys):
    path, file = tmp_path / "tuned.json", tmp_path / "model.keras"
    network = ["--model", "wrn-10-1", "--groups", 2, "--classes", 2]
    options = [*network, "--image-size", 8, *SIZES, "--output", path]
    text = output_of(capsys, "tune", *options)
    assert f"Written: {path}" in text and " at batch 2" in text
    assert [row[1] for row in rows_of(text)][-1].endswith("N = 2")
    rows = tuned.read(path)
    assert {(row.call.batch_size, row.training) for row in rows} == {(2, True)}
    network_builder("wrn-10-1")(
        conv="group", groups=2, input_shape=(8, 8, 3)
    ).save(file)
    output_of(capsys, "tune", file, "--forward", *SIZES, "--output", path)
    assert {row.training for row in tuned.read(path)} == {True, False}


def test_bad_options(tmp_path, capsys):
    file = tmp_path / "model.keras"
    assert "must be given once" in error_of(capsys, "tune")
    assert "must be given once" in error_of(
        capsys, "tune", file, "--model", "wrn-10-1"
    )
    line = error_of(capsys, "tune", file, "--groups", 2)
    assert "Received: --groups beside MODEL.keras" in line
    line = error_of(
        capsys, "tune", "--model", "wrn-10-1", "--output", file / "a"
    )
    assert "--output must be a file" in line
