"""`keras-tlgc params`: count what networks cost."""

import functools

import typer
from rich.console import Console

from keras_tlgc.applications.convolutions import CONVOLUTIONS, pair
from keras_tlgc.cli import options as shared
from keras_tlgc.cli.printing import show
from keras_tlgc.costs import model_costs
from keras_tlgc.lab import paper
from keras_tlgc.lab.tables import markdown_table
from keras_tlgc.validation import positive_int

# The columns, with their attributes of `keras_tlgc.costs.Costs`.
COSTS = {
    "Parameters": "params",
    "per processor": "params_per_processor",
    "coarse": "coarse_params",
    "Multiply-adds": "multiply_adds",
    "Activation bytes": "activation_bytes",
}


OPTIONS = {"model": (str, f"Network to count, as {shared.NETWORK_NAMES}.")}
OF_A_NETWORK = {
    "conv": (str, "Kinds of convolution, as group,two_level. All by default."),
    "groups": (str, "Numbers of groups, as 2,4,8.", "4"),
    "coarse_channels": (int, f"{shared.COARSE_CHANNELS}.", 1),
}


@shared.takes(
    OPTIONS | shared.MARKDOWN, {shared.NETWORK: OF_A_NETWORK | shared.SIZES}
)
def params(context: typer.Context, options):
    """Count the paper's parameters, or what a network of your choice costs.

    Without options: every number of parameters in the paper's Tables 1 to 4
    beside that of our networks. With --model: parameters, multiply-adds and
    activation bytes of one image. No weights are allocated.
    """
    if options.model is None:
        shared.refuse(context, [shared.NETWORK], "without --model")
        _print_paper(options.markdown)
        return
    build = shared.builder(options.model, options)
    kinds = options.conv.split(",") if options.conv else list(CONVOLUTIONS)
    r = positive_int("coarse_channels", options.coarse_channels)
    pairs = pair(kinds, shared.numbers("groups", options.groups))
    shared.refuse_options_of_kinds(context, kinds)
    cells, notes = [], []
    for conv, n in pairs:
        kind = CONVOLUTIONS[conv]
        costs = model_costs(
            functools.partial(build, conv=conv, groups=n, coarse_channels=r)
        )
        numbers = (f"{getattr(costs, name):,}" for name in COSTS.values())
        cells.append((kind.label, str(n), *numbers))
        if costs.stored_params != costs.params:
            stored = f"{costs.stored_params:,} parameters."
            notes.append(f"{kind.label}, N = {n}, stores {stored}\n")
    table = markdown_table(["Type", "N", *COSTS], cells, ["Type"])
    show(table, options.markdown)
    print("".join(notes), end="")


def _print_paper(markdown):
    yes, no = "✓✗" if Console().encoding.startswith("utf") else "yn"
    rows = []
    for count in paper.COUNTS:
        ours = count.ours()
        rows.append(
            (
                str(count.table),
                count.network,
                CONVOLUTIONS[count.conv].label,
                str(count.groups),
                ours,
                count.printed,
                yes if ours == count.printed else no,
            )
        )
    columns = ["Table", "Network", "Type", "N", "Ours", "Paper", "same"]
    show(markdown_table(columns, rows, ["Network", "Type"]), markdown)
    agreeing = sum(row[-1] == yes for row in rows)
    print(f"{agreeing} of {len(rows)} agree.")
