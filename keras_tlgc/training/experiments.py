"""Experiments as files: what a table or a figure of the paper needs."""

import dataclasses
import functools
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import keras

from keras_tlgc import paper
from keras_tlgc.files import write_text, write_whole
from keras_tlgc.training.comparison import (
    CONFIG,
    LISTS,
    Comparison,
    check,
    compare,
    epoch_seconds,
    training_losses,
)
from keras_tlgc.training.data import load_data
from keras_tlgc.training.outcomes import (
    Row,
    Summary,
    plot_errors,
    plot_losses,
    table,
)
from keras_tlgc.training.run import with_recipe
from keras_tlgc.training.samples import SAMPLES, write_samples

MOST_GROUPS = 16  # Of the smallest networks.


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
    `seeds` that a `Comparison` takes, and `parts`: tables of `Settings`, which
    may hold lists of their own and the name of a `recipe`, that of the data if
    not given.

    Args:
        path: path of the file, whose name is that of the experiment.

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
    names = [_Section.name_of(part) for part in made]
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


def smoke(experiment: Experiment, folder: Path) -> Experiment:
    """Return the experiment at a size of minutes, on generated images.

    One epoch of a network of depth 10 and a tenth of the width, for the first
    seed and the least and the largest number of groups that it has.

    Args:
        experiment: the `Experiment`.
        folder: path to write the images to.
    """
    write_samples(folder)
    parts = [_smoke_part(part, folder) for part in experiment.parts]
    parts_by_name = {_Section.name_of(part): part for part in parts}
    return dataclasses.replace(experiment, parts=tuple(parts_by_name.values()))


def _smoke_part(part, folder):
    changes: dict[str, Any] = {
        "epochs": 1,
        "batch_size": 8,
        "image_size": 32,
        "model": _smallest(part.recipe["model"]),
    }
    if part.recipe["data"] in SAMPLES:
        changes["data_dir"] = str(folder)
    groups = min(part.groups), max(part.groups)
    return dataclasses.replace(
        part,
        groups=sorted({min(n, MOST_GROUPS) for n in groups}),
        seeds=part.seeds[:1],
        recipe={**part.recipe, **changes},
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

    def __init__(self, part: Comparison, output: Path):
        self.part = part
        self.name = self.name_of(part)
        self.folder = output / self.name
        self.missing = ""
        self.rows = [
            Row(*configuration, seed, 0)
            for seed in part.seeds
            for configuration in part.configurations()
        ]

    @staticmethod
    def name_of(part: Comparison) -> str:
        """Return the name of a part's folder."""
        return f"{part.recipe['data']}-{part.recipe['model']}"

    def locate(self, data_dir: str | None) -> None:
        """Find the data, in `data_dir` or where the part says."""
        errors = []
        own = self.part.recipe["data_dir"]
        for directory in dict.fromkeys((data_dir or own, own)):
            recipe = {**self.part.recipe, "data_dir": directory}
            try:
                load_data(recipe["data"], directory, recipe["image_size"])
            except ValueError as error:
                errors.append(str(error))
            else:
                self.part = dataclasses.replace(self.part, recipe=recipe)
                return
        self.missing = errors[0]

    def text(self, write_plot) -> str:
        """Return the section in Markdown, with plots by `write_plot`."""
        recipe = self.part.recipe
        numbers = paper.printed(recipe["data"], recipe["model"])
        seconds = epoch_seconds(self.part, self.folder)
        columns = {"Seconds an epoch": functools.partial(_seconds, seconds)}
        if numbers:
            columns |= {
                f"Paper: {name}": functools.partial(_of_paper, numbers, form)
                for name, form in PAPER_COLUMNS.items()
            }
        lines = [f"## {recipe['data']}, {recipe['model']}", ""]
        if self.missing:
            lines += [f"Not run. {self.missing}", ""]
        lines.append(table(self.rows, columns))
        if any(row.error_rate is not None for row in self.rows):
            losses = training_losses(self.part, self.folder)
            errors = {
                configuration: numbers[configuration[:2]].error_rate
                for configuration in self.part.configurations()
                if _in_paper(configuration, numbers)
            }
            lines += [
                write_plot(
                    f"{self.name}-errors",
                    lambda path: plot_errors(self.rows, path, errors),
                ),
                write_plot(
                    f"{self.name}-losses",
                    lambda path: plot_losses(losses, path),
                ),
                "",
            ]
        return "\n".join(lines)


PAPER_COLUMNS = {
    "parameters": lambda printed: printed.parameters,
    "error rate (%)": lambda printed: f"{printed.error_rate:.2f}",
    "seconds an epoch": lambda printed: _number(printed.seconds, 0),
}


def run_experiment(
    experiment: Experiment,
    output: str | os.PathLike,
    data_dir: str | os.PathLike | None = None,
    resume: bool = False,
) -> list[Row]:
    """Train all that an experiment names, and report it beside the paper.

    `OUTPUT/NAME.md` is written anew after each run, `OUTPUT/DATA-MODEL` is the
    folder of a part's comparison, which experiments with the same output
    share: with `resume`, what one has trained the others do not train again.
    A part whose data are not there is left out, and the report says why.

    Args:
        experiment: the `Experiment`.
        output: folder for the report and the comparisons.
        data_dir: optional path of a folder with data. What is not there is
            looked for where the experiment says.
        resume: bool, whether to go on in a folder that holds comparisons.

    Returns:
        A list with one `Row` for each run, without those of missing parts.

    Raises:
        ValueError: before anything is trained, if all data are missing or
            `compare` would raise for a part.
    """
    output = Path(output)
    if data_dir is not None:
        data_dir = os.fspath(data_dir)
    sections = [_Section(part, output) for part in experiment.parts]
    for section in sections:
        section.locate(data_dir)
    if all(section.missing for section in sections):
        raise ValueError(sections[0].missing)
    present = [section for section in sections if not section.missing]

    def resumes(section):
        return resume and (section.folder / CONFIG).exists()

    for section in present:
        check(section.part, section.folder, resumes(section))
    for section in present:

        def report(rows, section=section):
            section.rows = rows
            _write_report(experiment, sections, output)

        compare(section.part, section.folder, resumes(section), report)
    return [row for section in present for row in section.rows]


def _write_report(experiment, sections, output):
    def write_plot(name, draw):
        name = f"{experiment.name}-{name}.png"
        write_whole(output / name, draw)
        return f"![{name}]({name})"

    text = [f"# {experiment.title}", "", _made_with(), ""]
    text += [section.text(write_plot) for section in sections]
    write_text(output / f"{experiment.name}.md", "\n".join(text) + "\n")


def _made_with():
    return f"Keras {keras.__version__} on {keras.backend.backend()}."


def _seconds(seconds, summary: Summary):
    return _number(seconds.get(summary.configuration), 1)


def _of_paper(numbers, form, summary: Summary):
    configuration = summary.configuration
    if not _in_paper(configuration, numbers):
        return "-"
    return form(numbers[configuration[:2]])


def _in_paper(configuration, numbers):
    return configuration[:2] in numbers and configuration.coarse_channels == 1


def _number(value, decimals):
    return "-" if value is None else f"{value:.{decimals}f}"
