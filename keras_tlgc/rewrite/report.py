"""What a conversion did, convolution by convolution."""

import dataclasses
from typing import Any, NamedTuple

from keras_tlgc.text import aligned


class Row(NamedTuple):
    """What became of one convolution.

    Attributes:
        name: path of the layer: the names of the models and layers around it
            and its own, joined by `/`.
        layer: name of its class before the conversion.
        groups: number of groups after the conversion; 1 if it was kept.
        reason: why it was kept; empty if it was converted.
        params, new_params: parameters before and after.
        multiply_adds, new_multiply_adds: multiplications for one input, before
            and after; in a model within `TimeDistributed`, for one time step.
            `None` if sizes are not known.
        error: share of the kernel's squared norm that the projection leaves
            out, from 0 to 1 (`Projection.error`); `None` if nothing was
            projected.
        output_error: share of the variance of the layer's outputs, before its
            activation, that the new layer misses on held-out data, given what
            it gets in the new network; `None` if nothing was fitted.
        form: what it was converted to: `"two_level"`, `"group"` or
            `"low_rank"`; empty if it was kept.
        coarse_channels: coarse channels of each group after the conversion, or
            `None` if it was kept.
        expected_error: the output error by which a budget has chosen form,
            groups and coarse channels: that of the original's inputs, before
            the fit. `None` without a budget.
    """

    name: str
    layer: str
    groups: int
    reason: str
    params: int
    new_params: int
    multiply_adds: int | None
    new_multiply_adds: int | None
    error: float | None = None
    output_error: float | None = None
    form: str = ""
    coarse_channels: int | None = None
    expected_error: float | None = None


@dataclasses.dataclass(frozen=True)
class Report:
    """What a conversion did. `print` shows it as a table.

    Attributes:
        rows: tuple of a `Row` for each convolution, in the order of the model.
        params, new_params: parameters of the whole model before and after.
        notes: tuple of strings: what else is different in the new model.
        score, new_score: what `evaluate` gave before and after, or `None`.
        curve: tuple of pairs, with a budget: the share of the cost that other
            budgets leave, from the least on, and the variance lost then, as a
            share of that which the least loses.
    """

    rows: tuple[Row, ...]
    params: int
    new_params: int
    notes: tuple[str, ...] = ()
    score: float | None = None
    new_score: float | None = None
    curve: tuple[tuple[float, float], ...] = ()

    @property
    def converted(self) -> list[Row]:
        """The rows of the convolutions that were converted."""
        return [row for row in self.rows if not row.reason]

    @property
    def kept(self) -> list[Row]:
        """The rows of the convolutions that were kept, each with a reason."""
        return [row for row in self.rows if row.reason]

    @property
    def columns(self) -> tuple[str, ...]:
        """The headings of `cells`."""
        errors = (
            ("kernel error", "output error") if self._fitted else ("error",)
        )
        chosen = ("form", "groups", "r") if self._chosen else ("groups",)
        return (
            "convolution",
            "layer",
            *chosen,
            "parameters",
            "multiply-adds",
            *(["expected error"] if self._chosen else []),
            *errors,
            "kept, because",
        )

    @property
    def cells(self) -> list[tuple[str, ...]]:
        """The rows as text, to be printed below `columns`."""
        return [
            (
                row.name,
                row.layer,
                *([row.form] if self._chosen else []),
                "" if row.reason else str(row.groups),
                *([_coarse(row)] if self._chosen else []),
                _change(row.params, row.new_params),
                _change(row.multiply_adds, row.new_multiply_adds),
                *([_error(row.expected_error)] if self._chosen else []),
                _error(row.error),
                *([_error(row.output_error)] if self._fitted else []),
                row.reason,
            )
            for row in self.rows
        ]

    @property
    def _chosen(self) -> bool:
        """Whether a budget has chosen, layer by layer."""
        return any(row.expected_error is not None for row in self.rows)

    @property
    def _noun(self) -> str:
        """What the rows are: `Dense` layers too, if these were asked for."""
        has_dense = any(row.layer == "Dense" for row in self.rows)
        return "layers" if has_dense else "convolutions"

    @property
    def _fitted(self) -> bool:
        return any(row.output_error is not None for row in self.rows)

    @property
    def summary(self) -> str:
        """The totals in one line, then one line for each note."""
        first = (
            f"{len(self.converted)} of {len(self.rows)} {self._noun} "
            f"converted; parameters {_change(self.params, self.new_params)}"
        )
        before = [row.multiply_adds for row in self.rows]
        after = [row.new_multiply_adds for row in self.rows]
        if None not in before:
            adds = _change(sum(filter(None, before)), sum(filter(None, after)))
            first += f"; multiply-adds {adds}"
        if self.score is not None:
            first += f"; score {self.score:.4g} -> {self.new_score:.4g}"
        return "\n".join([first, *self.notes])

    def plot(self) -> Any:
        """Draw what each convolution lost and, with a budget, what others lose.

        Returns:
            A `matplotlib.figure.Figure`: `report.plot().savefig("lost.png")`.
            Bars show the output error or, where nothing was fitted, the kernel
            error; convolutions without a bar were kept.

        Raises:
            ImportError: if matplotlib is not installed.
        """
        from matplotlib.figure import Figure

        height = max(3.5, 0.2 * len(self.rows))
        figure = Figure((11 if self.curve else 7, height), layout="constrained")
        panels = figure.subplots(1, 2 if self.curve else 1, squeeze=False)[0]
        _draw_layers(panels[0], self.rows, self._fitted)
        if self.curve:
            _draw_curve(panels[1], self.curve, self.notes[-1])
        return figure

    def __str__(self) -> str:
        lines = [self.columns, *self.cells]
        return f"{aligned(lines)}\n{self.summary}"


def _draw_layers(axes: Any, rows: tuple[Row, ...], fitted: bool) -> None:
    errors = [row.output_error if fitted else row.error for row in rows]
    for form in dict.fromkeys(row.form for row in rows if row.form):
        places = [i for i, row in enumerate(rows) if row.form == form]
        axes.barh(places, [errors[i] or 0.0 for i in places], label=form)
    names = [f"{row.name} (kept)" if row.reason else row.name for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize="x-small")
    axes.invert_yaxis()
    axes.set_xlabel("output error" if fitted else "kernel error")
    if any(row.form for row in rows):
        axes.legend()


def _draw_curve(
    axes: Any, curve: tuple[tuple[float, float], ...], title: str
) -> None:
    axes.plot(*zip(*curve, strict=True))
    axes.set_xlabel("share of the cost that is left")
    axes.set_ylabel("variance lost, of the most")
    axes.set_yscale("symlog", linthresh=1e-3)
    axes.set_title(title, fontsize="x-small", wrap=True)


def _change(before: int | None, after: int | None) -> str:
    if before is None:
        return ""
    return f"{before:,}" if before == after else f"{before:,} -> {after:,}"


def _coarse(row: Row) -> str:
    return str(row.coarse_channels) if row.form not in ("", "group") else ""


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
