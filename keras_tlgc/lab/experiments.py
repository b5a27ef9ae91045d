"""Experiments that files describe, as for a table of the paper."""

import dataclasses
import functools
import os
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import keras

from keras_tlgc.files import write_text
from keras_tlgc.lab import paper
from keras_tlgc.lab.comparison import (
    CONFIG,
    LISTS,
    Comparison,
    check_folder,
    compare,
    count_parameters,
)
from keras_tlgc.lab.data.image_folder import ImageFolder
from keras_tlgc.lab.data.sets import (
    FROM_FOLDERS,
    GENERATED,
    ImageData,
    load_data,
)
from keras_tlgc.lab.estimates import estimate, estimates_table
from keras_tlgc.lab.outcomes import Row, table
from keras_tlgc.lab.results import epoch_seconds, write_plots
from keras_tlgc.lab.run import with_recipe

MOST_GROUPS = 16  # The smallest networks have no more.


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Comparisons that belong together, as the columns of a table do.

    Args:
        name: string, the name of its report.
        title: string, the report's title.
        parts: a `Comparison` for each network and data set.
    """

    name: str
    title: str
    parts: tuple[Comparison, ...]


def read_experiment(path: str | os.PathLike) -> Experiment:
    """Return the experiment that a TOML file describes.

    Its keys are `title`, the lists `convs`, `groups`, `coarse_channels` and
    `seeds` that a `Comparison` takes, and `parts`, tables of `Settings`. A part
    may also hold lists of its own and the name of a `recipe`, which defaults to
    that of its data.

    Args:
        path: path of the file. Its name becomes that of the experiment.

    Raises:
        ValueError: if the file cannot be read or holds something else.
    """
    try:
        content = tomllib.loads(Path(path).read_text("utf-8"))
        return _experiment(Path(path).stem, **content)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(
            "An experiment must be a TOML file with a title, with parts and "
            f"with lists of {', '.join(LISTS)}. Received: '{path}': {error} "
            "Write it as those in examples/paper."
        ) from error


def _experiment(name, *, title, parts, **lists):
    if not isinstance(title, str) or not isinstance(parts, list) or not parts:
        raise ValueError("`title` must be text, `parts` at least one table.")
    made = tuple(_part({**lists, **part}) for part in parts)
    names = [name_of(part) for part in made]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(
            f"Parts must differ in data or model: {sorted(twice)} is there "
            "more than once. Put them in files, and outputs, of their own."
        )
    return Experiment(name, title, made)


def _part(values):
    lists = {key: values.pop(key) for key in LISTS if key in values}
    recipe = with_recipe(values, values.pop("recipe", None))
    return Comparison(recipe=recipe, **lists)


def smoke(experiment: Experiment) -> Experiment:
    """Return the experiment made small enough for minutes, on generated images.

    It trains one epoch of networks of depth 10 and a tenth of the width, for
    the first seed, with the smallest and the largest number of groups. The
    title, the files and the names of the data say that it is not a result.
    """
    parts_by_name = {
        name_of(part): part for part in map(_smoke_part, experiment.parts)
    }
    is_generated = any(name.startswith(GENERATED) for name in parts_by_name)
    what = "Generated images" if is_generated else "A single epoch"
    return Experiment(
        name=f"{experiment.name}-{GENERATED if is_generated else ''}smoke",
        title=f"{what}, not a result: {experiment.title}",
        parts=tuple(parts_by_name.values()),
    )


def _smoke_part(part):
    recipe = {
        **part.recipe,
        "epochs": 1,
        "batch_size": 8,
        "model": _smallest(part.recipe["model"]),
    }
    if recipe["data"] in FROM_FOLDERS:
        recipe |= {"data": GENERATED + recipe["data"], "data_dir": None}
    if recipe["augmentation"] == "crops":  # Generated images are no files.
        recipe["augmentation"] = "shifts"
    groups = min(part.groups), max(part.groups)
    return dataclasses.replace(
        part,
        groups=sorted({min(n, MOST_GROUPS) for n in groups}),
        seeds=part.seeds[:1],
        recipe=recipe,
    )


def _smallest(model):
    """Return the network of the same family with a tenth of the width."""
    if model.startswith("plain-"):
        return model
    if match := re.fullmatch(r"(wrn-(?:imagenet-)?)\d+-(\d+)", model):
        return f"{match[1]}10-{max(1, int(match[2]) // 10)}"
    return "mobilenetv2-0.35"


class _Section:
    """A part of a report: what the paper prints beside what was measured."""

    def __init__(self, part: Comparison, output: Path, resume: bool):
        self.part = part
        self.folder = output / name_of(part)
        self.resumes = resume and (self.folder / CONFIG).exists()
        self.missing = ""
        self.data: ImageData | ImageFolder | None = None
        self.rows = [
            Row(*configuration, seed, 0)
            for seed in part.seeds
            for configuration in part.configurations()
        ]

    def locate(self, data_dir: str | None, load: Callable) -> None:
        """Read the data, in `data_dir` or where the part says."""
        recipe = self.part.recipe
        own = recipe["data_dir"]
        for directory in dict.fromkeys((data_dir or own, own)):
            try:
                self.data = load(
                    recipe["data"], directory, recipe["image_size"]
                )
            except ValueError as error:
                self.missing = self.missing or str(error)
            else:
                recipe = {**recipe, "data_dir": directory}
                self.part = dataclasses.replace(self.part, recipe=recipe)
                self.missing = ""
                return

    def write(self, output: Path, name: str) -> str:
        """Return the section of the report `name`; write its plots."""
        recipe = self.part.recipe
        numbers = paper.printed(recipe["data"], recipe["model"])
        printed = {
            configuration: numbers[configuration[:2]]
            for configuration in self.part.configurations()
            if configuration.coarse_channels == 1
            and configuration[:2] in numbers
        }
        seconds = epoch_seconds(self.rows, self.folder)
        lines = [f"## {self.part.title}", ""]
        if self.missing:
            lines += [f"Not run. {self.missing}", ""]
        lines.append(table(self.rows, seconds, printed))
        if any(row.error_rate is not None for row in self.rows):
            stem = f"{name}-{self.folder.name}"
            plots = f"{stem}-errors.png", f"{stem}-losses.png"
            write_plots(
                self.rows,
                self.folder,
                output / plots[0],
                output / plots[1],
                self.part.title,
                printed,
            )
            lines += [*(f"![{plot}]({plot})" for plot in plots), ""]
        return "\n".join(lines)


def name_of(part: Comparison) -> str:
    """Return the name of a part's folder."""
    return f"{part.recipe['data']}-{part.recipe['model']}"


def run_experiment(
    experiment: Experiment,
    output: str | os.PathLike,
    data_dir: str | os.PathLike | None = None,
    resume: bool = False,
    verbose: int = 0,
) -> list[Row]:
    """Train all that an experiment names, and report it beside the paper.

    `OUTPUT/NAME.md` is written anew after each run. `OUTPUT/DATA-MODEL` is the
    folder of a part's comparison. Experiments with the same output share it, so
    that with `resume` none trains again what another has trained. A part whose
    data are not there is left out, and the report says why.

    Args:
        experiment: the `Experiment`.
        output: folder for the report and the comparisons.
        data_dir: optional path of a folder with data. What is not there is
            looked for where the experiment says.
        resume: bool, whether to go on in a folder that holds comparisons.
        verbose: 0, 1 or 2 for the epochs of each run, as in `keras.Model.fit`.

    Returns:
        A list with one `Row` for each run, without those of missing parts.

    Raises:
        ValueError: before anything is trained, if all data are missing or
            `compare` would raise for a part.
    """
    output = Path(output)
    if data_dir is not None:
        data_dir = os.fspath(data_dir)
    sections = [_Section(part, output, resume) for part in experiment.parts]
    for section in sections:
        check_folder(section.part, section.folder, section.resumes)
    load = functools.cache(load_data)  # Parts may share their data.
    for section in sections:
        section.locate(data_dir, load)
        if section.data is not None:
            count_parameters(section.part, section.data)
    present = [section for section in sections if not section.missing]
    if not present:
        raise ValueError(sections[0].missing)
    for section in present:

        def report(rows, section=section):
            section.rows = rows
            _write_report(experiment, sections, output)

        compare(
            section.part,
            section.folder,
            section.resumes,
            report,
            section.data,
            verbose,
        )
    return [row for section in present for row in section.rows]


def estimate_experiment(
    experiment: Experiment, data_dir: str | os.PathLike | None = None
) -> Iterator[str]:
    """Yield what each part of an experiment will take, as Markdown.

    Args:
        experiment: the `Experiment`.
        data_dir: as for `run_experiment`.
    """
    if data_dir is not None:
        data_dir = os.fspath(data_dir)
    load = functools.cache(load_data)
    for part in experiment.parts:
        section = _Section(part, Path(), False)
        section.locate(data_dir, load)
        yield f"## {part.title}\n"
        if section.missing:
            yield f"Not estimated. {section.missing}\n"
        else:
            rows = estimate(section.part, section.data)
            yield estimates_table(section.part, rows) + "\n"


def _write_report(experiment, sections, output):
    made_with = f"Keras {keras.__version__} on {keras.backend.backend()}."
    text = [f"# {experiment.title}", "", made_with, ""]
    text += [section.write(output, experiment.name) for section in sections]
    write_text(output / f"{experiment.name}.md", "\n".join(text) + "\n")
