"""Low-rank adaptation (LoRA) of layers whose kernels hold groups."""

import math

import keras
from keras import ops

from keras_tlgc._keras import unlocked
from keras_tlgc.ops.lora import add_product
from keras_tlgc.validation import positive_int

CONSTRAINTS = (
    "kernel_constraint",
    "restriction_constraint",
    "coarse_constraint",
    "balance_constraint",
)


class LoraKernels:
    """What a layer of groups needs for LoRA: see `enable_lora`.

    `BaseGroupConv` inherits this. A subclass with other kernels lists them in
    `adapted_kernels`.
    """

    @property
    def adapted_kernels(self):
        """Pairs of a kernel and the number of groups along its last axis."""
        return [(kernel, self.groups) for kernel in self.sharded_kernels]

    def enable_lora(
        self,
        rank,
        lora_alpha=None,
        a_initializer="he_uniform",
        b_initializer="zeros",
    ):
        """Freeze the kernels, and train a product of low rank beside each.

        This is as in `keras.layers.Conv2D.enable_lora`: the layer then
        convolves with `kernel + lora_alpha / rank * A B`, of which A and B (and
        the bias) are trained. When the layer is saved, `A B` is merged into the
        kernel. Each group has an A and a B of its own, which stay with it on a
        mesh, while `Conv2D(groups=N)` has one A for all groups.

        If each of N groups has `k*k*c` by `f` weights, A and B together have
        `N * r * (k*k*c + f)`. Here r is `rank`, or the smaller side of the
        matrix of weights if `rank` is above that, since a higher rank adds
        nothing. In a two-level layer G, R and C all get products, since with R
        and C frozen the groups would go on exchanging what they exchanged
        before; see `TwoLevelGroupConv2D` for the number of parameters. The
        scores of `LearnableGroupConv2D` are frozen.

        A compiled model has to be compiled again.

        Args:
            rank: int, the largest rank of a product.
            lora_alpha: number, the weight of the products times `rank`.
                Defaults to `rank`.
            a_initializer: initializer of each A.
            b_initializer: initializer of each B. With zeros the layer at first
                computes what it did before.

        Raises:
            ValueError: if an argument is out of its range, the layer has no
                weights yet, has LoRA already, or has a constraint on a kernel.
        """
        self.check_built("enable_lora")
        if self.lora_enabled:
            raise ValueError(
                "LoRA can be enabled once for a layer. Received: "
                f"enable_lora({rank}) for the layer '{self.name}', which has "
                f"it with lora_rank={self.lora_rank}. Train that, or begin "
                "anew: load saved weights, where it is merged, into a layer "
                "without it."
            )
        rank, alpha = check_lora(rank, lora_alpha)
        self.check_unconstrained()
        get = keras.initializers.get
        a_initializer, b_initializer = get(a_initializer), get(b_initializer)
        frozen = [v for v in self.weights if v is not self.bias]
        with unlocked(self):
            self.lora_kernels = [
                factor
                for kernel, groups in self.adapted_kernels
                for factor in self._add_factors(
                    kernel, groups, rank, a_initializer, b_initializer
                )
            ]
            # The first pair gets the attributes that it has in Keras' layers.
            # Where all groups are empty, there is none.
            first = self.lora_kernels[:2] or (None, None)
            self.lora_kernel_a, self.lora_kernel_b = first
        for variable in frozen:
            variable.trainable = False
        self.lora_enabled = True
        self.lora_rank, self.lora_alpha = rank, alpha

    def _add_factors(self, kernel, groups, rank, a_initializer, b_initializer):
        *window, columns = kernel.shape
        rank = min(rank, math.prod(window), columns // groups)
        shapes = {"a": (*window, groups * rank), "b": (rank, columns)}
        initializers = {"a": a_initializer, "b": b_initializer}
        return [
            self.add_weight(
                name=f"lora_{kernel.name}_{factor}",
                shape=shapes[factor],
                initializer=initializers[factor],
                regularizer=kernel.regularizer,
                dtype="float32",  # As in Keras, or small changes would vanish.
            )
            for factor in "ab"
        ]

    def check_unconstrained(self):
        """Raise a `ValueError` if a kernel has a constraint."""
        given = [name for name in CONSTRAINTS if getattr(self, name, None)]
        if given:
            raise ValueError(
                "LoRA adds to kernels that it freezes, so that no constraint "
                f"on a kernel would hold. Received: {', '.join(given)} of the "
                f"layer '{self.name}'. Leave LoRA out, or the constraint."
            )

    def merged(self, kernel):
        """Return a kernel of this layer with what LoRA adds to it, if any."""
        if self.lora_enabled:
            for i, (adapted, _) in enumerate(self.adapted_kernels):
                if adapted is kernel:
                    a, b = self.lora_kernels[2 * i : 2 * i + 2]
                    return add_product(kernel, a, b, self.lora_scale)
        return kernel

    @property
    def lora_scale(self):
        """The weight of the products of low rank."""
        return self.lora_alpha / self.lora_rank

    def save_own_variables(self, store):
        if not self.lora_enabled:
            super().save_own_variables(store)
            return
        for i, variable in enumerate(self._saved_variables()):
            store[str(i)] = self.merged(variable)

    def load_own_variables(self, store):
        if not self.lora_enabled:
            super().load_own_variables(store)
            return
        variables = self._saved_variables()
        if len(store.keys()) != len(variables):
            raise ValueError(
                "The weights must be those of such a layer, LoRA merged. "
                f"Received: {len(store.keys())} arrays for the layer "
                f"'{self.name}' of {[v.name for v in variables]}. "
                "Load the file of a model with the same layers."
            )
        for i, variable in enumerate(variables):
            variable.assign(store[str(i)])
        # Only B becomes zero. With zeros in A as well, as in Keras, neither
        # factor would get a gradient, and training would stand still.
        for b in self.lora_kernels[1::2]:
            b.assign(ops.zeros(b.shape))

    def _saved_variables(self):
        factors = {id(factor) for factor in self.lora_kernels}
        return [v for v in self.weights if id(v) not in factors]


def check_lora(rank, alpha):
    """Return rank and alpha of LoRA, or raise a `ValueError`."""
    rank = positive_int("lora_rank", rank)
    if alpha is None:
        alpha = rank
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise ValueError(
            "`lora_alpha` must be a number or None. "
            f"Received: lora_alpha={alpha!r}. Pass a number, as in Keras."
        )
    return rank, alpha
