"""Converted layers, fitted in turn to the outputs of the original network."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import keras
import numpy as np
from keras import ops

from keras_tlgc.rewrite.images import Images
from keras_tlgc.rewrite.patches import Sampler
from keras_tlgc.rewrite.progress import Track
from keras_tlgc.rewrite.samples import Fitted, Samples, outputs_of
from keras_tlgc.rewrite.statistics import Statistics, is_norm, scale_of
from keras_tlgc.rewrite.streams import Step, Stream, Values, steps_of, whole

Array: TypeAlias = np.ndarray[Any, Any]

POSITIONS = 16384  # At which a layer is looked at, of all images together.

FAR = 4  # Normalisations between layers, from which on values are stored.


class Fit:
    """Fits the new layers of a converted model.

    Two streams of the same images run through the graph of the new model: in
    the one, each layer is called that stands there in the original; in the
    other, those that replace them, as far as they are fitted.

    Args:
        model: the new model.
        originals: dict from the `id` of a layer of it to the original one.
        forms: dict from the `id` of each layer to fit to what its kernels are:
            see `project_kernel`.
        images: what to fit them on.
    """

    def __init__(
        self,
        model: keras.Model,
        originals: dict[int, keras.layers.Layer],
        forms: Mapping[int, str],
        images: Images,
    ) -> None:
        self.originals = originals
        self.forms = forms
        self.images = images
        self.steps, inputs, self.outputs = steps_of(model)
        self.readers: dict[int, list[Step]] = {}
        calls: dict[int, list[Step]] = {}
        for step in self.steps:
            calls.setdefault(id(step.operation), []).append(step)
            for key in step.reads:
                self.readers.setdefault(key, []).append(step)
        # By the `id` of a layer that is still to be fitted, in order.
        self.calls = {key: some for key, some in calls.items() if key in forms}
        self.first = Stream(
            self.steps, images.batches(inputs), self.original, self.outputs
        )
        # Up to the first layer that is fitted, both are the same.
        self.second = self.first
        self.normalised: set[int] = set()
        self.statistics: dict[int, Statistics] = {}
        self.rng = np.random.default_rng(0)
        self.found: dict[int, Fitted] = {}
        # Names of layers to which the fit has not helped, and which have seen
        # too little.
        self.kept: list[str] = []
        self.scarce: list[str] = []

    def original(self, step: Step) -> Any:
        return self.originals.get(id(step.operation), step.operation)

    def run(self, track: Track) -> dict[int, Fitted]:
        """Fit all layers; return by the `id` of each what came of it."""
        for step, *others in track(list(self.calls.values())):
            self.found[id(step.operation)] = self.layer(step, others)
            del self.calls[id(step.operation)]
        self.move(self.outputs)
        return self.found

    def survey(self, track: Track) -> Iterator[tuple[int, Samples]]:
        """Yield what each layer sees in the original, by its `id`."""
        for step, *others in track(list(self.calls.values())):
            self.first.advance(list(step.reads))
            yield id(step.operation), self.samples(step, others, [])

    def move(self, keys: list[int]) -> None:
        """Bring both streams to where values are known."""
        self.first.advance(keys, self.watch)
        if self.second is self.first:
            self.second = self.first.copy(lambda step: step.operation)
        norms = filter(is_norm, self.second.before(keys))
        for i, step in enumerate(norms, 1):
            if i % FAR == 0:
                # What is before it would be computed again for each of them.
                self.second.advance(list(step.reads))
            # One that is called again keeps the statistics of its first call.
            if id(step.operation) not in self.normalised:
                self.normalised.add(id(step.operation))
                self.normalise(step)
        self.second.advance(keys)

    def watch(self, batch: int, step: Step, values: Values) -> None:
        if is_norm(step) and not self.images.is_held(batch):
            statistics = self.statistics.setdefault(id(step), Statistics())
            statistics.add(values[step.reads[0]], step.operation.axis)

    def normalise(self, step: Step) -> None:
        """Estimate the statistics of a normalisation anew.

        They change as those of these images do between the two networks. So
        they stay what they were where the inputs do.
        """
        norm, [key] = step.operation, step.reads
        now = Statistics()
        for batch, [value] in enumerate(self.second.peek([key])):
            if not self.images.is_held(batch):
                now.add(value, norm.axis)
        before = self.statistics[id(step)]
        old = self.original(step)
        mean, variance = map(
            ops.convert_to_numpy, (old.moving_mean, old.moving_variance)
        )
        norm.moving_mean.assign(mean + now.mean - before.mean)
        varies = (now.variance > 0) & (before.variance > 0)
        pair = now.variance, before.variance
        ratio = np.divide(*pair, where=varies, out=np.ones(varies.shape))
        norm.moving_variance.assign(variance * ratio)

    def layer(self, step: Step, later: list[Step]) -> Fitted:
        """Fit a layer at its first call, and move the streams there."""
        new, added = step.operation, self.behind(step)[1]
        self.move([*step.reads, *added])
        samples = self.samples(step, later, added)
        if samples.sums.count < len(samples.sums.inputs):
            self.scarce.append(new.name)
        found = samples.fit(new, self.forms[id(new)])
        if not found.pays:
            self.kept.append(new.name)
        return found

    def samples(
        self, step: Step, later: list[Step], added: list[int]
    ) -> Samples:
        """Return what a layer gets and should return, at its first call."""
        old, norm = self.original(step), self.behind(step)[0]
        scale = np.ones(old.kernel.shape[-1])
        if norm is not None:
            scale = scale_of(self.original(norm))
        samples = Samples(old, norm is not None, scale)
        for batch, (inputs, targets) in self.sampled(step, added, later, scale):
            samples.add(inputs, targets, self.images.is_held(batch))
        return samples

    @property
    def notes(self) -> list[str]:
        """What a report says of the data."""
        notes = {
            "layers keep their projected kernels, since fitted ones are no "
            "better on the data held out": self.kept,
            "layers have seen fewer positions than a filter has weights, so "
            "more data would fit them better": self.scarce,
        }
        return [
            f"{len(names)} {note}: {', '.join(names[:3])}"
            f"{', ...' * (len(names) > 3)}"
            for note, names in notes.items()
            if names
        ]

    def sampled(
        self, step: Step, added: list[int], later: list[Step], scale: Array
    ) -> Iterator[tuple[int, tuple[Array, Array]]]:
        """Yield the number of a batch, patches of inputs, and the targets."""
        old, [key] = self.original(step), step.reads
        most = math.ceil(POSITIONS / self.images.count)
        batches = zip(self.first.batches, self.second.batches, strict=True)
        for i, (first, second) in enumerate(batches):
            inputs = whole(first[key])
            sampler = Sampler(old, inputs, most, self.rng)
            targets = outputs_of(old, sampler.patches(inputs))
            for other in added:
                known, found = (
                    sampler.pixels(whole(x[other])) for x in (first, second)
                )
                if known is not None and found is not None:
                    targets += (known - found) / scale
            yield i, (sampler.patches(whole(second[key])), targets)
        for call in later:
            # What is before it may not be fitted yet: the original's inputs.
            for i, [value] in enumerate(self.first.peek(list(call.reads))):
                value = ops.convert_to_numpy(value)
                sampler = Sampler(old, value, most, self.rng)
                patches = sampler.patches(value)
                yield i, (patches, outputs_of(old, patches))

    def behind(self, step: Step) -> tuple[Step | None, list[int]]:
        """Return what is behind a convolution that can make up for something.

        Returns:
            The normalisation that reads its outputs, or `None`, and the keys of
            what is added to them then, if all of it is known without the layer:
            the shortcut of a residual block, whose loss the layer can mend.
        """
        if self.original(step).activation is not keras.activations.linear:
            return None, []
        norm, [key] = None, step.writes
        reader = self.only_reader(key)
        if reader is not None and is_norm(reader) and _same_axis(reader, step):
            norm, [key] = reader, reader.writes
            reader = self.only_reader(key)
        if reader is None or type(reader.operation).__name__ != "Add":
            return norm, []
        others = [other for other in reader.reads if other != key]
        before = self.second.before(others)
        if any(id(one.operation) in self.calls for one in before):
            return norm, []
        return norm, others

    def only_reader(self, key: int) -> Step | None:
        """Return the step that alone reads a value, or `None`."""
        steps = self.readers.get(key, [])
        return steps[0] if len(steps) == 1 and key not in self.outputs else None


def _same_axis(norm: Step, conv: Step) -> bool:
    """Return whether a normalisation treats the filters of a convolution."""
    rank = conv.operation.rank + 2
    is_first = conv.operation.data_format == "channels_first"
    return norm.operation.axis % rank == (1 if is_first else rank - 1)
