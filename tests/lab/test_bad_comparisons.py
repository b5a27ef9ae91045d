"""Comparisons that are refused, before anything is written."""

import keras
import pytest
from tiny import (
    contents,
    small,
    tiny_run,  # noqa: F401  A fixture.
)

from keras_tlgc.lab import compare, stored_comparison

pytestmark = pytest.mark.usefixtures("tiny_run")


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(convs=[]), r"`convs` must list at least one.*convs=\[\]"),
        (dict(convs="group"), r"`convs` must list at least .*convs='group'"),
        (dict(seeds=[1, 1]), r"`seeds` must list .*none twice.*\[1, 1\]"),
        (dict(groups=[0]), r"`groups` must be a positive.*groups=0"),
        (
            dict(recipe={"seed": 1, "conv": "group"}),
            r"`recipe` must hold what all runs share.*\['conv', 'seed'\]",
        ),
        (dict(coarse_channels=[0]), r"`coarse_channels` must be a positive"),
        (dict(recipe={"colour": 1}), r"Settings must be .*\['colour'\]"),
    ],
    ids=str,
)
def test_bad_comparisons(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


@pytest.mark.real_network
@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(groups=[2, 3]), r"`groups` must divide .*groups=3, but"),
        (dict(recipe={"batch_size": 97}), r"`batch_size` must not exceed"),
    ],
    ids=str,
)
def test_networks_that_cannot_be_built_write_nothing(
    tmp_path, changes, message
):
    with pytest.raises(ValueError, match=message):
        compare(small(**changes), tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_existing_folder_is_kept(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    before = contents(tmp_path)
    with pytest.raises(
        ValueError, match=r"folder must be new or empty.*--resume"
    ):
        compare(small(), tmp_path)
    with pytest.raises(ValueError, match=r"must be a folder.*File exists"):
        compare(small(), tmp_path / "thesis.tex")
    with pytest.raises(ValueError, match=r"--resume needs the folder of a run"):
        compare(small(), tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"--resume needs the folder of a run"):
        stored_comparison(tmp_path / "nowhere")
    assert contents(tmp_path) == before


def test_recipe_and_backend_may_not_change_on_resume(tmp_path):
    one = small(convs=["group"], seeds=[0])
    compare(one, tmp_path)
    before = contents(tmp_path)
    other = small(recipe={"epochs": 9})
    with pytest.raises(
        ValueError,
        match=r"goes on with the recipe and backend.*epochs=9; .*has epochs=2",
    ):
        compare(other, tmp_path, resume=True)
    assert contents(tmp_path) == before
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace(keras.backend.backend(), "numpy"))
    with pytest.raises(ValueError, match=r"has backend='numpy'"):
        compare(one, tmp_path, resume=True)
