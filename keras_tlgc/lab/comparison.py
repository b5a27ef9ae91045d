"""Compare kinds of convolution, with the same recipe, groups and seeds."""

import contextlib
import dataclasses
import datetime
import functools
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import keras

from keras_tlgc.applications.convolutions import CONVOLUTIONS, pair
from keras_tlgc.costs import count_params
from keras_tlgc.distribution import mesh
from keras_tlgc.files import write_text
from keras_tlgc.lab.data.image_folder import ImageFolder
from keras_tlgc.lab.data.sets import ImageData
from keras_tlgc.lab.folder import (
    check_empty,
    check_unchanged,
    locked,
    read_json,
    versions,
    write_json,
)
from keras_tlgc.lab.outcomes import Configuration, Row
from keras_tlgc.lab.results import (
    ERRORS,
    LOSSES,
    RESULTS,
    TABLE,
    run_folder,
    with_outcome,
    write_results,
)
from keras_tlgc.lab.run import Settings, build_network, train
from keras_tlgc.validation import positive_int

CONFIG = "config.json"
TRACEBACK = "traceback.txt"
COMPARISON_FILES = {
    RESULTS: "one row for each run: its error rate, or what it failed with",
    TABLE: "mean and spread over the seeds, as the paper's Table 3",
    ERRORS: "the same as a picture, as the paper's Figures 5 and 7",
    LOSSES: "training loss of each epoch, as the paper's Figure 4",
    CONFIG: "all that repeats the comparison: settings and versions",
    "runs": f"the folder of each run, with a {TRACEBACK} if it failed",
}
LISTS = ("convs", "groups", "coarse_channels", "seeds")
# All other settings are the recipe.
VARIED = ("conv", "groups", "coarse_channels", "seed")


# The kinds that the paper compares. Low rank is compared when it is asked for,
# since with one coarse channel a group, as in the paper, it has too few.
PAPERS = ("standard", "group", "shuffle", "learnable", "two_level")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What to compare: every kind, with every number of groups and every seed.

    Args:
        convs: kinds of convolution, keys of
            `keras_tlgc.applications.convolutions.CONVOLUTIONS`. Those that
            take no groups run once for each seed.
        groups: integers, the numbers N of groups.
        coarse_channels: integers, the numbers r of coarse channels of each
            group, for the kinds that have them.
        seeds: integers.
        recipe: dict, the other `Settings`, the same for all runs.
        model_parallel: bool, whether each run of N groups is spread over N
            devices, on JAX.

    Raises:
        ValueError: if a list is empty or names a value twice, or a value is
            out of its range.
    """

    convs: tuple[str, ...] = PAPERS
    groups: tuple[int, ...] = (2, 4, 8, 16)
    coarse_channels: tuple[int, ...] = (1,)
    seeds: tuple[int, ...] = (0, 1, 2)
    recipe: dict = dataclasses.field(default_factory=dict)
    model_parallel: bool = False

    def __post_init__(self):
        for name in LISTS:
            values = getattr(self, name)
            if (
                not isinstance(values, list | tuple)
                or not values
                or any(values.count(value) > 1 for value in values)
            ):
                raise ValueError(
                    f"`{name}` must list at least one value, none twice. "
                    f"Received: {name}={values!r}. Name each value once."
                )
            object.__setattr__(self, name, tuple(values))
        if varied := set(VARIED) & set(self.recipe):
            raise ValueError(
                "`recipe` must hold what all runs share. "
                f"Received: {sorted(varied)}. "
                f"Use {', '.join(f'`{name}`' for name in LISTS)} for these."
            )
        for r in self.coarse_channels:
            positive_int("coarse_channels", r)
        settings = dataclasses.asdict(Settings.from_dict(self.recipe))
        recipe = {k: v for k, v in settings.items() if k not in VARIED}
        object.__setattr__(self, "recipe", recipe)
        self.runs()  # This checks kinds, groups and seeds.

    @property
    def title(self) -> str:
        """The data and the network, as plots and reports name them."""
        return f"{self.recipe['data']}, {self.recipe['model']}"

    def runs(self) -> list[Settings]:
        """Return the settings of all runs, one seed after the other."""
        return [
            Settings(**self.recipe, **configuration._asdict(), seed=seed)
            for seed in self.seeds
            for configuration in self.configurations()
        ]

    def configurations(self) -> list[Configuration]:
        """Return what is trained with every seed."""
        return [
            Configuration(conv, n, r)
            for conv, n in pair(self.convs, self.groups)
            for r in (
                self.coarse_channels
                if "coarse_channels" in CONVOLUTIONS[conv].options
                else (1,)
            )
        ]


def compare(
    comparison: Comparison,
    output: str | os.PathLike,
    resume: bool = False,
    report: Callable[[list[Row]], None] | None = None,
    data: ImageData | ImageFolder | None = None,
    verbose: int = 0,
) -> list[Row]:
    """Train every kind with every number of groups and every seed.

    `results.csv`, the table and the plots are written anew after each run, from
    the folders of all finished runs, whatever is compared now. A run that fails
    becomes a row with its error, and the next one begins. A comparison that was
    killed at any moment goes on with `resume`: a run that was interrupted goes
    on from its last finished epoch, and a run that failed is tried again,
    unless it came to its end with a loss that is not finite.

    Args:
        comparison: the `Comparison`.
        output: folder for the files in `COMPARISON_FILES`.
        resume: bool, whether to go on with the comparison that the folder
            holds. Kinds, groups, coarse channels and seeds may have changed
            since.
        report: optional function, called with the rows of all runs whenever
            the files are written.
        data: optional images of the comparison, if they are read already.
        verbose: 0, 1 or 2 for the epochs of each run, as in `keras.Model.fit`.

    Returns:
        A list with one `Row` for each run.

    Raises:
        ValueError: before anything is written, if the folder holds files and
            `resume` is not given, if there is nothing to resume or what there
            is has another recipe or backend, if another process works in it,
            if some settings make no network, or if there are too few devices
            for `model_parallel`.
    """
    folder = Path(output)
    config = {**dataclasses.asdict(comparison), "versions": versions()}
    # What the folder holds may change until it is locked.
    with locked(folder):
        check_folder(comparison, folder, resume)
        data = data or Settings(**comparison.recipe).load_data()
        counts = count_parameters(comparison, data)
        write_json(folder / CONFIG, config)
        rows = {
            s: Row(*Configuration.of(s), s.seed, counts[Configuration.of(s)])
            for s in comparison.runs()
        }
        _run_all(rows, comparison, data, folder, report, verbose)
    return list(rows.values())


def check_folder(
    comparison: Comparison, folder: Path, resume: bool = False
) -> None:
    """Raise the errors of `compare` that show without the images."""
    if resume:
        stored, backend = _stored(folder)
        check_unchanged(
            "--resume goes on with the recipe and backend of a comparison.",
            _unchanging(stored, backend),
            _unchanging(comparison, keras.backend.backend()),
            folder,
        )
    else:
        check_empty(folder)
    if comparison.model_parallel:
        # This raises if there are too few devices.
        mesh.model_parallel((1, max(comparison.groups)))


def _unchanging(comparison, backend):
    """Return what may not change when a comparison goes on."""
    spread = {"model_parallel": comparison.model_parallel}
    return {**comparison.recipe, **spread, "backend": backend}


def count_parameters(
    comparison: Comparison, data: ImageData | ImageFolder
) -> dict[Configuration, int]:
    """Return the parameters of each network.

    Raises:
        ValueError: if one cannot be built, or cannot be trained on these data.
    """
    first_seed = [s for s in comparison.runs() if s.seed == comparison.seeds[0]]
    data.train_batches(first_seed[0], comparison.seeds[0])
    return {
        Configuration.of(settings): count_params(
            functools.partial(build_network, settings, data)
        )
        for settings in first_seed
    }


def stored_comparison(output: str | os.PathLike) -> Comparison:
    """Return the comparison that a folder holds.

    Raises:
        ValueError: if the folder holds none.
    """
    return _stored(Path(output))[0]


def _run_all(
    rows: dict[Settings, Row], comparison, data, folder, report, verbose
) -> None:
    """Fill in the rows, and write the files after each run."""
    finished = [s for s in rows if run_folder(folder, s).finished]
    left = [s for s in rows if s not in finished]
    begin = time.monotonic()
    for settings in finished + left:
        title = f"{rows[settings].configuration.title}, seed {settings.seed}"
        if verbose and settings in left:
            print(f"{title} ...", flush=True)
        row = _run(comparison, settings, rows[settings], folder, data, verbose)
        rows[settings] = row
        print(f"{title}: {row.failure or f'{row.error_rate:.2f}% error'}")
        if settings in left or settings == finished[-1]:
            known = list(rows.values())
            write_results(known, folder, comparison.title)
            if report is not None:
                report(known)
        if settings in left[:-1]:
            done = left.index(settings) + 1
            more = len(left) - done
            seconds = round((time.monotonic() - begin) / done * more)
            rest = datetime.timedelta(seconds=seconds)
            print(f"Runs left: {more}, about {rest}.", flush=True)


def _run(comparison, settings, row: Row, output, data, verbose) -> Row:
    """Train what is left of a run, and return its row."""
    folder = run_folder(output, settings)
    devices = settings.groups if comparison.model_parallel else 1
    try:
        if folder.finished:  # This needs no images and no network.
            folder.check(dataclasses.asdict(settings), True, False)
        else:
            keras.utils.clear_session()  # Clears what the last run left.
            train(
                settings,
                folder.path,
                resume=None,
                overwrite=True,
                verbose=verbose,
                mesh=(1, devices) if devices > 1 else None,
                data=data,
            )
        (folder.path / TRACEBACK).unlink(missing_ok=True)
        return with_outcome(row, folder, settings.epochs)
    except Exception as error:
        with contextlib.suppress(OSError):  # The run's error counts.
            folder.path.mkdir(parents=True, exist_ok=True)
            write_text(folder.path / TRACEBACK, traceback.format_exc())
        message = " ".join(f"{type(error).__name__}: {error}".split())
        return row._replace(failure=message)


def _stored(folder: Path) -> tuple[Comparison, str]:
    """Return the comparison in the folder, and its backend."""
    config = read_json(folder / CONFIG, "recipe", "versions")
    backend = config.pop("versions").get("backend")
    return Comparison(**config), backend
