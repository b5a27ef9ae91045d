"""`keras-tlgc train`: train one network."""

from pathlib import Path

import typer

from keras_tlgc import lab
from keras_tlgc.cli import options as shared
from keras_tlgc.cli.printing import print_files, shows_bars
from keras_tlgc.distribution.mesh import parse_mesh
from keras_tlgc.lab import RunFolder, Settings

OPTIONS = {
    "output": (
        Path,
        "Folder for the results, new or empty. By default named after the "
        "settings, below runs/.",
    ),
    "mesh": (
        str,
        "Devices along the batch axis and along the model axis, as 1x4, on "
        "JAX. The second must divide the groups.",
    ),
    "resume": (bool, "Go on with the folder's run."),
    "overwrite": (bool, "Replace the folder's run."),
}


@shared.takes(
    OPTIONS | shared.OF_ONE_RUN | shared.DATA_DIR,
    {shared.RECIPE: shared.SETTINGS},
)
def train(context: typer.Context, options):
    """Train a network on images; write model, history, config and curves."""
    given = shared.given_settings(
        options,
        [*shared.SETTINGS, *shared.OF_ONE_RUN, *shared.DATA_DIR],
        options.resume,
    )
    settings = Settings.from_dict(given)
    folder = options.output or Path("runs") / (
        f"{settings.data}-{settings.model}-{settings.conv}-n{settings.groups}"
    )
    if options.resume:
        settings = Settings.from_dict({**RunFolder(folder).settings(), **given})
    shared.refuse_options_of_kinds(context, [settings.conv])
    shared.refuse_image_size(context, settings.data)
    result = lab.train(
        settings,
        folder,
        options.resume,
        options.overwrite,
        verbose=1 if shows_bars() else 2,
        mesh=None if options.mesh is None else parse_mesh(options.mesh),
    )
    print(f"Held-out accuracy: {result.accuracy:.2%}. In {result.folder}:")
    print_files(lab.FILES)
