"""`keras-tlgc compare`: compare kinds of convolution, or repeat the paper."""

import dataclasses
from pathlib import Path

import typer

from keras_tlgc import lab
from keras_tlgc.cli import options as shared
from keras_tlgc.cli.printing import print_files, show, shows_bars
from keras_tlgc.lab import Comparison

# Columns of an experiment's report that a narrow terminal can do without.
SPARE = ["Paper: seconds an epoch", "Seconds an epoch", "95% interval"]
COMPARED = {
    "conv": (
        str,
        f"Kinds of convolution, as group,two_level, of {shared.KINDS}: those "
        "of the paper if not given.",
    ),
    "groups": (str, "Numbers of groups: 2,4,8,16 if not given."),
    "coarse_channels": (str, f"{shared.COARSE_CHANNELS}, as 1,2,4: 1."),
    "seeds": (str, "Seeds, a run for each: 0,1,2 if not given."),
}


OPTIONS = {
    "output": (
        Path,
        "Folder for the results, new or empty: runs/compare, runs/paper with "
        "--config, runs/smoke with --smoke.",
    ),
    "config": (
        Path,
        "TOML file of an experiment, as those in examples/paper, in place of "
        "all that is compared and of the recipe.",
    ),
    "smoke": (
        bool,
        "With --config: try all of it in minutes, on generated images, with "
        "one epoch of small networks.",
    ),
    "model_parallel": (
        bool,
        "Spread each run of N groups over N devices, on JAX.",
    ),
    "estimate": (
        bool,
        "Train nothing: print how many hours and how much memory all of it "
        "takes here, from a few steps of each network.",
    ),
    "resume": (bool, "Go on with the folder's comparison."),
}


@shared.takes(
    OPTIONS | shared.MARKDOWN | shared.DATA_DIR,
    {shared.LISTS: COMPARED, shared.RECIPE: shared.SETTINGS},
)
def compare(context: typer.Context, options):
    """Train kinds of convolution with one recipe, and tabulate their errors."""
    if options.config is None:
        rows = _compare(context, options)
    else:
        rows = _repeat(context, options)
    if failed := sum(bool(row.failure) for row in rows):
        raise ValueError(
            f"{failed} of {len(rows)} runs failed; results.csv says why. "
            "--resume tries those again that did not come to their end."
        )


def _compare(context, options):
    """Train what the options name."""
    shared.refuse(context, ["smoke"], "without --config")
    output = options.output or Path("runs/compare")
    base = lab.stored_comparison(output) if options.resume else Comparison()
    changes = {
        name: shared.numbers(name, getattr(options, name))
        for name in COMPARED
        if name != "conv" and getattr(options, name) is not None
    }
    if options.conv is not None:
        changes["convs"] = options.conv.split(",")
    given = shared.given_settings(
        options, [*shared.SETTINGS, *shared.DATA_DIR], options.resume
    )
    comparison = dataclasses.replace(
        base,
        **changes,
        recipe={**base.recipe, **given},
        model_parallel=base.model_parallel or options.model_parallel,
    )
    shared.refuse_options_of_kinds(context, comparison.convs)
    shared.refuse_image_size(context, comparison.recipe["data"])
    if options.estimate:
        rows = lab.estimate(comparison)
        show(lab.estimates_table(comparison, rows), options.markdown)
        return []
    rows = lab.compare(
        comparison, output, options.resume, verbose=int(shows_bars())
    )
    show(lab.table(rows), options.markdown)
    print(f"In {output}:")
    print_files(lab.COMPARISON_FILES)
    return rows


def _repeat(context, options):
    """Train what a file describes."""
    shared.refuse(context, [shared.LISTS, shared.RECIPE], "beside --config")
    if options.smoke:
        shared.refuse(context, ["data_dir"], "beside --smoke")
    experiment = lab.read_experiment(options.config)
    if options.model_parallel:
        parts = (
            dataclasses.replace(part, model_parallel=True)
            for part in experiment.parts
        )
        experiment = dataclasses.replace(experiment, parts=tuple(parts))
    if options.estimate:
        shared.refuse(context, ["smoke"], "beside --estimate")
        for text in lab.estimate_experiment(experiment, options.data_dir):
            show(text, options.markdown)
        return []
    output, resume = options.output or Path("runs/paper"), options.resume
    if options.smoke:
        output = options.output or Path("runs/smoke")
        experiment, resume = lab.smoke(experiment), True
    rows = lab.run_experiment(
        experiment, output, options.data_dir, resume, int(shows_bars())
    )
    report = output / f"{experiment.name}.md"
    show(report.read_text("utf-8"), options.markdown, SPARE)
    print(f"In {report}; the runs are beside it.")
    return rows
