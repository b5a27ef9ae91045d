"""What kinds of convolution lose as groups become more, and how sure that is.

    keras-tlgc compare --data fashion_mnist --model wrn-10-1 --batch-size 100 \
        --epochs 3 --groups 2,4,8,16 --output runs/rivals --conv \
        standard,group,shuffle,learnable,balanced,low_rank,two_level
    keras-tlgc benchmark --model wrn-10-1 --groups 2,4,8,16 --output times.csv \
        --conv group,shuffle,learnable,balanced,low_rank,two_level
    python benchmarks/rivals.py runs/rivals --times times.csv

reads the runs of a comparison, and draws in its folder, in `rivals.png`, the
error against N, the parameters and the time of a train step. It prints

- the slope of the error in log2 N, by least squares, with its 95% interval, and
  that of its difference from half of the slope of group convolution;
- the differences of two levels from the others of the same N: their 95%
  interval over seeds (Welch), and over the held-out images, on which all runs
  are compared one by one, with the p of the latter after Holm's correction for
  as many comparisons as there are.
"""

import argparse
import csv
from pathlib import Path

import keras
import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from keras_tlgc.applications.convolutions import CONVOLUTIONS
from keras_tlgc.lab import load_data
from keras_tlgc.lab.outcomes import Row, format_params
from keras_tlgc.lab.results import RESULTS, run_folder
from keras_tlgc.lab.tables import markdown_table

KIND, BASE = "two_level", "group"
LEVEL = 0.95


def read(folder, data):
    """Map kind and N to parameters and to the images that each seed missed."""
    runs = {}
    with (folder / RESULTS).open(newline="") as file:
        for conv, *numbers, _, failure in list(csv.reader(file))[1:]:
            if failure:
                continue
            row = Row(conv, *map(int, numbers))
            path = run_folder(folder, row).path / "model.keras"
            scores = keras.saving.load_model(path).predict(
                data.pixels_test, 500, verbose=0
            )
            missed = scores.argmax(-1) != data.y_test
            key = row.conv, row.groups
            runs.setdefault(key, (row.parameters, []))[1].append(missed)
    return {key: (count, np.array(of)) for key, (count, of) in runs.items()}


def errors(missed):
    """Return the error of each seed in percent."""
    return 100 * missed.mean(1)


def slope(runs, conv):
    """Return the slope of the error in log2 N, its deviation and runs."""
    points = [
        (np.log2(n), error)
        for (kind, n), (_, missed) in runs.items()
        for error in errors(missed)
        if kind == conv
    ]
    fit = stats.linregress(*zip(*points, strict=True))
    return fit.slope, fit.stderr, len(points)


def interval(mean, deviation, freedom):
    half = stats.t.ppf((1 + LEVEL) / 2, freedom) * deviation
    return f"{mean - half:.2f} to {mean + half:.2f}"


def slopes(runs):
    base, base_deviation, base_points = slope(runs, BASE)
    rows = []
    for conv in dict.fromkeys(kind for kind, n in runs if n > 1):
        steep, deviation, points = slope(runs, conv)
        over = steep - base / 2
        both = np.hypot(deviation, base_deviation / 2)
        freedom = points + base_points - 4
        rows.append(
            [
                CONVOLUTIONS[conv].label,
                f"{steep:.2f}",
                interval(steep, deviation, points - 2),
                "" if conv == BASE else interval(over, both, freedom),
            ]
        )
    head = ["Type", "Points a doubling", "95% interval", "beyond GC's half"]
    return markdown_table(head, rows, ["Type"])


def differences(runs):
    """Return the table of GC-2L less each of its rivals."""
    pairs = [
        (other, n)
        for other, n in runs
        if other != KIND and n > 1 and (KIND, n) in runs
    ]
    rows, chances = [], []
    for other, n in sorted(pairs, key=lambda pair: pair[1]):
        ours, theirs = runs[KIND, n][1], runs[other, n][1]
        over_seeds = stats.ttest_ind(
            errors(ours), errors(theirs), equal_var=False
        ).confidence_interval(LEVEL)
        over_images = stats.ttest_1samp(
            100 * (ours.mean(0) - theirs.mean(0)), 0
        )
        low, high = over_images.confidence_interval(LEVEL)
        chances.append(over_images.pvalue)
        rows.append(
            [
                f"GC-2L - {CONVOLUTIONS[other].label}",
                f"{n}",
                f"{(low + high) / 2:+.2f}",
                f"{over_seeds.low:.2f} to {over_seeds.high:.2f}",
                f"{low:.2f} to {high:.2f}",
            ]
        )
    for row, chance in zip(rows, holm(chances), strict=True):
        row.append(f"{chance:.2g}")
    head = ["Difference", "N", "Points", "over seeds", "over images"]
    return markdown_table([*head, f"p of {len(rows)}"], rows, ["Difference"])


def holm(chances):
    """Return each p after Holm's correction."""
    order = np.argsort(chances)
    factors = np.arange(len(chances), 0, -1)
    adjusted = np.maximum.accumulate(np.array(chances)[order] * factors)
    result = np.empty(len(chances))
    result[order] = np.minimum(adjusted, 1)
    return result


def plot(runs, times, path):
    """Draw error against N, parameters and time."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = figure.subplots(1, 3 if times else 2, sharey=True)
    for conv in dict.fromkeys(kind for kind, _ in runs):
        keys = [key for key in runs if key[0] == conv]
        label = CONVOLUTIONS[conv].label
        means = [errors(runs[key][1]).mean() for key in keys]
        spreads = [errors(runs[key][1]).std(ddof=1) for key in keys]
        places = [[n for _, n in keys], [runs[key][0] for key in keys]]
        if times:
            places.append([times[key] for key in keys])
        for one, place in zip(axes, places, strict=True):
            one.errorbar(
                place, means, spreads, fmt="o-", capsize=2, label=label
            )
    axes[0].set(xlabel="number of groups N", ylabel="error rate (%)")
    axes[0].set_xscale("log", base=2)
    axes[0].legend()
    axes[1].set(xlabel="parameters", xscale="log")
    if times:
        axes[2].set(xlabel="time of a train step, to SC")
    figure.savefig(path, dpi=100)


def read_times(path):
    with path.open(newline="") as file:
        return {
            (row["conv"], int(row["groups"])): float(row["to_standard"])
            for row in csv.DictReader(file)
            if row["run"] == "training" and not row["error"]
        }


def summary(runs, times):
    rows = []
    for (conv, n), (count, missed) in runs.items():
        found = errors(missed)
        cells = [CONVOLUTIONS[conv].label, f"{n}", format_params(count)]
        cells += [f"{found.mean():.2f} ± {found.std(ddof=1):.2f}"]
        cells += [f"{len(found)}"]
        rows.append([*cells, f"{times[conv, n]:.2f}" if times else ""])
    head = ["Type", "N", "Parameters", "Error rate (%)", "Runs", "Time to SC"]
    return markdown_table(head, rows, ["Type"])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", default="fashion_mnist")
    parser.add_argument("--times", type=Path)
    options = parser.parse_args()
    runs = read(options.folder, load_data(options.data))
    runs = dict(sorted(runs.items(), key=lambda item: item[0][1]))
    times = read_times(options.times) if options.times else None
    for text in (summary(runs, times), slopes(runs), differences(runs)):
        print(text, end="\n\n")
    plot(runs, times, options.folder / "rivals.png")


if __name__ == "__main__":
    main()
