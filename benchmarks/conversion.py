"""What converted networks know, against networks of the same cost.

    OMP_NUM_THREADS=1 KERAS_BACKEND=tensorflow python benchmarks/conversion.py \
        --seeds 0,1,2 --output runs/converted

trains a WideResNet-16-2 of standard convolutions on Fashion-MNIST for each
seed and converts it to shares of the multiply-adds of its convolutions: as a
budget chooses for each layer, and with one form for all layers. Layers are
fitted on unlabelled training images, or, for comparison, to the kernels alone.
Each is tested on the 10,000 held-out images as it is, and after the same
fine-tuning with the original as teacher, without labels. Two more have the
layers that the budget chose and weights drawn by chance: one is fine-tuned, the
other trained from the start on the labels, as the original was.

Each result is a row of `results.csv` in the output folder as soon as it is
there. The same command goes on where an earlier one ended, and several, each
with its own seeds, may write to one folder. The table at the end has all rows.
"""

import argparse
import csv
import functools
from pathlib import Path

import keras
from convert_fit import (
    fit,
    mean_and_spread,
    numbers,
    score,
    share,
    shares,
    uniform,
)

import keras_tlgc
from keras_tlgc.lab import Settings, load_data, train

KEYS = ["budget", "choice", "seed"]
ORIGINAL = "original"
# What all layers become, of the largest rank that keeps to the share: the form,
# the groups, and whether it is fitted on images.
UNIFORM = {
    "low rank": ("low_rank", 1, True),
    "low rank, N = 8": ("low_rank", 8, True),
    "two-level, N = 4": ("two_level", 4, True),
    "two-level, N = 4, kernels": ("two_level", 4, False),
    "one level, N = 2": ("group", 2, True),
    "one level, N = 4": ("group", 4, True),
}


class Results:
    """The rows of a file, to which each new one is added at once.

    Args:
        folder: path of the folder, which is made.
        score: str, the name of what a network is scored by, in percent.
    """

    def __init__(self, folder, score="accuracy"):
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.score = folder / "results.csv", score
        if not self.path.exists():
            fields = [*KEYS, "share", score, "fine_tuned"]
            self.path.write_text(",".join(fields) + "\n")

    def rows(self):
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))

    def add(self, budget, choice, seed, make):
        """Add what `make` returns, unless there is such a row."""
        key = str(budget), choice, str(seed)
        if any(tuple(row[k] for k in KEYS) == key for row in self.rows()):
            return
        values = [f"{value:.4f}" for value in make()]
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow([*key, *values])
        print(*key, *values, flush=True)


def original(settings, data, folder):
    """Return the trained network, from its folder if it is there."""
    path = folder / f"{settings.data}-{settings.model}-{settings.seed}"
    if not (path / "model.keras").exists():
        train(settings, path, resume=None, verbose=2, data=data)
    return keras.saving.load_model(path / "model.keras")


class Study:
    """What becomes of a network.

    Args:
        model: `keras.Model`, the original.
        score: function of a network that returns what it is scored by.
        images: array of the images that layers are fitted on.
        tuning: array of those that converted networks are fine-tuned on.
        seed: int, by which rows are known.
        options: what `Study.add_options` has read.
        results: the `Results` that rows are added to.
    """

    forms = UNIFORM

    def __init__(self, model, score, images, tuning, seed, options, results):
        self.model, self.score = model, score
        self.images, self.tuning = images, tuning
        self.seed, self.options, self.results = seed, options, results
        self.chosen = None  # What a budget has come to.

    @staticmethod
    def add_options(parser, budgets):
        parser.add_argument("--seeds", type=numbers, default=[0, 1, 2])
        parser.add_argument("--images", type=int, default=1000)
        parser.add_argument("--budgets", type=shares, default=budgets)
        parser.add_argument("--finetune", type=int, default=1)
        parser.add_argument("--output", type=Path, required=True)

    def run(self):
        _, report = keras_tlgc.convert(self.model, 1, "low_rank")
        for budget in self.options.budgets:
            self.chosen = None
            for name, kind in self.forms.items():
                *form, fitted = kind
                way = uniform(self.model, report.rows, *form, budget)
                if way is not None:
                    images = self.images if fitted else None
                    self.add(budget, name, self.converted, data=images, **way)
            self.add(budget, "by layer", self.by_layer, budget)
            self.others(budget)

    def others(self, budget):
        """Add what else there is of a budget."""

    def add(self, budget, name, convert, *args, **options):
        def make():
            new, left = convert(*args, **options)
            before = self.score(new)
            keras_tlgc.distill(
                new,
                self.model,
                self.tuning,
                epochs=self.options.finetune,
                verbose=0,
            )
            return left, before, self.score(new)

        self.results.add(budget, name, self.seed, make)

    def converted(self, **options):
        new, report = keras_tlgc.convert(self.model, **options)
        return new, share(report)

    def by_layer(self, budget):
        if self.chosen is None:
            self.chosen = self.converted(budget=budget, data=self.images)
        new, left = self.chosen
        copy = keras.models.clone_model(new)
        copy.set_weights(new.get_weights())
        return copy, left


class StudyOfTrained(Study):
    """With networks of other weights, and one trained from the start.

    Args:
        settings: `Settings` that the original was trained with.
        data: the `DataSet` that it was trained on.
        *more: what `Study` takes after the seed.
    """

    def __init__(self, settings, data, *more):
        model = original(settings, data, more[0].output)
        super().__init__(
            model,
            functools.partial(score, data=data),
            data.sample(more[0].images),
            data.sample(more[0].tuning_images),
            settings.seed,
            *more,
        )
        self.settings, self.data = settings, data

    def run(self):
        accuracy = self.score(self.model)
        self.results.add(
            1.0, ORIGINAL, self.seed, lambda: (1.0, accuracy, accuracy)
        )
        super().run()

    def others(self, budget):
        self.add(budget, "by layer, random", self.random, budget)
        self.results.add(
            budget,
            "by layer, trained from the start",
            self.seed,
            lambda: self.from_the_start(budget),
        )

    def random(self, budget):
        """Return the layers that the budget chose, with other weights."""
        new, left = self.by_layer(budget)
        keras.utils.set_random_seed(self.seed)
        return keras.models.clone_model(new), left

    def from_the_start(self, budget):
        new, left = self.random(budget)
        fit(new, self.settings, self.data, verbose=2)
        accuracy = self.score(new)
        return left, accuracy, accuracy


def print_table(results):
    """Print means and deviations, in brackets those of the change."""
    rows, groups = results.rows(), {}
    originals = {
        row["seed"]: float(row[results.score])
        for row in rows
        if row["choice"] == ORIGINAL
    }
    for row in sorted(rows, key=lambda row: -float(row["budget"])):
        groups.setdefault((row["budget"], row["choice"]), []).append(row)
    head = ["budget", "choice", "share", results.score, "fine-tuned", "seeds"]
    print(f"\n| {' | '.join(head)} |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    for (budget, choice), runs in groups.items():
        left = sum(float(row["share"]) for row in runs) / len(runs)
        scores, tuned = (
            _scores(runs, name, originals if choice != ORIGINAL else {})
            for name in (results.score, "fine_tuned")
        )
        cells = [budget, choice, f"{left:.3f}", scores]
        cells += ["" if scores == tuned else tuned, f"{len(runs)}"]
        print(f"| {' | '.join(cells)} |")


def _scores(runs, name, originals):
    text = mean_and_spread([float(row[name]) for row in runs])
    if not originals:
        return text
    changes = [float(row[name]) - originals[row["seed"]] for row in runs]
    return f"{text} ({mean_and_spread(changes)})"


def main():
    parser = argparse.ArgumentParser()
    Study.add_options(parser, budgets=[0.5, 0.25])
    parser.add_argument("--data", default="fashion_mnist")
    parser.add_argument("--model", default="wrn-16-2")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--tuning-images", type=int, default=10_000)
    options = parser.parse_args()
    results = Results(options.output)
    data = load_data(options.data)
    for seed in options.seeds:
        settings = Settings(
            data=options.data,
            model=options.model,
            conv="standard",
            epochs=options.epochs,
            seed=seed,
        )
        StudyOfTrained(settings, data, options, results).run()
    print_table(results)


if __name__ == "__main__":
    main()
