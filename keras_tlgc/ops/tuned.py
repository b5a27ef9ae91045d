"""Lowerings that measured fastest on the machine of a user, in a file.

`keras_tlgc.tune` writes the file. Layers with `lowering="auto"` ask it if the
user names it; nothing here measures.
"""

import contextlib
import functools
import importlib
import json
import os
import platform
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import keras
from keras import ops

from keras_tlgc import __version__
from keras_tlgc.files import write_text
from keras_tlgc.ops.lowerings import LOWERINGS, device_of

VARIABLE = "KERAS_TLGC_TUNED"
FORMAT = 1  # Of the file. Another one is refused.


class Call(NamedTuple):
    """A call of a layer, as far as its time depends on it.

    Attributes:
        layer: string, the name of the layer's class.
        batch_size: int, or `None` while TensorFlow traces for any.
        size: tuple, the sizes of the input along each spatial axis, with what
            causal padding adds.
        channels, filters, groups: integers.
        coarse_channels: int, of all groups together.
        kernel_size, coarse_kernel_size: tuples; the latter is the window of R,
            or the former.
        strides, dilation_rate: tuples.
        padding: `"valid"` or `"same"`.
        data_format: `"channels_last"` or `"channels_first"`.
        dtype: string, what it is computed in.
    """

    layer: str
    batch_size: int | None
    size: tuple[int, ...]
    channels: int
    filters: int
    groups: int
    coarse_channels: int
    kernel_size: tuple[int, ...]
    coarse_kernel_size: tuple[int, ...]
    strides: tuple[int, ...]
    dilation_rate: tuple[int, ...]
    padding: str
    data_format: str
    dtype: str

    @property
    def input_shape(self) -> tuple[Any, ...]:
        """The shape of the layer's input."""
        if self.data_format == "channels_first":
            return (self.batch_size, self.channels, *self.size)
        return (self.batch_size, *self.size, self.channels)


class Machine(NamedTuple):
    """What lowerings are measured on."""

    device: str
    backend: str
    backend_version: str
    keras_tlgc: str


class Row(NamedTuple):
    """A row of the file.

    Attributes:
        machine: what it was measured on.
        training: bool, whether with all gradients, or the forward pass alone.
        call: what was measured.
        lowering: the one to take; `"auto"` if none is clearly faster than what
            that takes anyway.
        to_auto: dict, the time that each lowering took, relative to `"auto"`.
    """

    machine: Machine
    training: bool
    call: Call
    lowering: str
    to_auto: dict[str, float]

    @property
    def key(self) -> tuple[Any, ...]:
        return self[:3]


# Returns the lowering for a call of the layer, or `"auto"`.
Answer: TypeAlias = Callable[[Call, keras.layers.Layer], str]
_UNREAD = object()
_answer: Any = _UNREAD  # An `Answer`; `None` if there is no file.


def use_tuned(path: str | os.PathLike[str] | None) -> None:
    """Let `lowering="auto"` ask a file that `keras_tlgc.tune` wrote.

    The environment variable `KERAS_TLGC_TUNED`, read at the first call of a
    layer, does the same. A layer finds the row of its device, backend, versions
    of backend and package, shapes, batch size and dtype, one of training before
    one of the forward pass alone; without such a row it is computed as without
    the file. What is compiled stays as it is: call this before. On a mesh the
    batch size is that of one device, all processes must read the same file, and
    `"dense"` is not taken.

    Args:
        path: path of the file, or `None` to ask none, also if the environment
            names one.

    Raises:
        ValueError: if the file does not exist, is not one of `tune`, or is one
            of another version's format.

    Example:

    >>> keras_tlgc.ops.use_tuned(None)  # Whatever file the environment names.
    """
    global _answer
    _answer = None if path is None else _answer_of(Path(path))


def asked(call: Call, layer: keras.layers.Layer) -> str:
    """Return the lowering for a call, or `"auto"` if nothing says which."""
    answer = _current()
    return "auto" if answer is None else answer(call, layer)


def is_asked() -> bool:
    """Return whether anything answers."""
    return _current() is not None


@contextlib.contextmanager
def answered_by(answer: Answer) -> Iterator[None]:
    """Have a function answer within the context, and no file."""
    global _answer
    before, _answer = _answer, answer
    try:
        yield
    finally:
        _answer = before


def _current() -> Answer | None:
    if _answer is _UNREAD:
        use_tuned(os.environ.get(VARIABLE) or None)
    return _answer


def _answer_of(path: Path) -> Answer:
    here = this_machine()
    rows = [row for row in read(path) if row.machine == here]
    if not rows:
        warnings.warn(
            f"'{path}' has no row for {here.device} with {here.backend} "
            f"{here.backend_version} and keras_tlgc {here.keras_tlgc}, so that "
            "nothing is taken from it. Call `keras_tlgc.tune` here.",
            stacklevel=2,
        )
    found: dict[Call, dict[int | None, str]] = {}
    for row in sorted(rows, key=lambda row: row.training):  # These come last.
        any_batch = row.call._replace(batch_size=None)
        batches = found.setdefault(any_batch, {})
        batches[row.call.batch_size] = row.lowering

    def answer(call: Call, layer: keras.layers.Layer) -> str:
        del layer
        batches = found.get(call._replace(batch_size=None), {})
        size = call.batch_size
        if size is None and batches:
            size = max(filter(None, batches))
        return batches.get(size, "auto")

    return answer


@functools.cache
def this_machine() -> Machine:
    """Return what layers are computed on."""
    backend = keras.backend.backend()
    version = importlib.import_module(backend).__version__
    kind = device_of(ops.zeros(()))
    return Machine(_device_name(backend, kind), backend, version, __version__)


def _device_name(backend: str, kind: str) -> str:
    if kind == "cpu":
        return f"cpu {_processor()}"
    if backend == "torch":
        import torch

        return torch.cuda.get_device_name() if kind == "cuda" else kind
    if backend == "jax":
        import jax

        return jax.devices()[0].device_kind
    import tensorflow as tf

    [device, *_] = tf.config.list_physical_devices(kind.upper())
    details = tf.config.experimental.get_device_details(device)
    return details.get("device_name", kind)


def _processor() -> str:
    """Return the name of the processor, which Linux says in a file."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def read(path: Path) -> list[Row]:
    """Return the rows of a file, or raise a `ValueError` on what is wrong."""
    where = f"Name one in {VARIABLE}, or none"
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ValueError(
            "A file of tuned lowerings must be one that can be read. Received: "
            f"'{path}' ({error.strerror}). {where}, and write it with "
            "`keras_tlgc.tune(model, batch_size, path=...)`."
        ) from error
    except ValueError as error:
        raise _malformed(path, error) from error
    version = content.get("format") if isinstance(content, dict) else None
    if version != FORMAT:
        raise ValueError(
            "A file of tuned lowerings must be of a format that this version "
            f"reads: {FORMAT}. Received: '{path}' of format {version!r}. "
            "Delete it and call `keras_tlgc.tune` again."
        )
    try:
        return [_row(one) for one in content["rows"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _malformed(path, error) from error


def _malformed(path: Path, error: Exception) -> ValueError:
    return ValueError(
        "A file of tuned lowerings must be as `keras_tlgc.tune` writes it. "
        f"Received: '{path}' ({type(error).__name__}: {error}). Delete it and "
        "call `keras_tlgc.tune` again."
    )


def _row(one: dict[str, Any]) -> Row:
    if one["lowering"] not in LOWERINGS:
        raise ValueError(f"lowering {one['lowering']!r}")
    call: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in one["call"].items()
    }
    return Row(
        Machine(**one["machine"]),
        bool(one["training"]),
        Call(**call),
        one["lowering"],
        dict(one["to_auto"]),
    )


def write(path: Path, rows: Iterable[Row]) -> None:
    """Write rows into a file, in place of those of the same calls there."""
    before = read(path) if path.exists() else []
    merged = {row.key: row for row in [*before, *rows]}
    content = [
        {**row._asdict(), "machine": row.machine._asdict()}
        | {"call": row.call._asdict()}
        for row in merged.values()
    ]
    lines = ",\n".join(json.dumps(one) for one in content)
    write_text(path, f'{{"format": {FORMAT}, "rows": [\n{lines}\n]}}\n')
