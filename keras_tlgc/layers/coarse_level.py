"""R and C: what two-level and low-rank convolutions have in common."""

from keras_tlgc.layers.base_group_conv import BaseGroupConv


class CoarseLevelConv(BaseGroupConv):
    """A layer with `coarse_channels` in each group, which R makes and C takes.

    It sets `_restriction_kernel` and `_coarse_kernel` when it is built.
    """

    @property
    def restriction_kernel(self):
        """R: its variable or, once LoRA is enabled, the merged tensor."""
        return self.merged(self._restriction_kernel)

    @property
    def coarse_kernel(self):
        """C: its variable or, once LoRA is enabled, the merged tensor."""
        return self.merged(self._coarse_kernel)

    @property
    def gathered_channels(self):
        return self.groups * self.coarse_channels
