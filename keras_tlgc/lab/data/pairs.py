"""A task that groups of channels can only solve if they exchange data."""

import numpy as np

CHANNELS = 32
SIDE, MARK = 8, 3  # Pixels.
NOISE = 0.5
COUNTS = 4000, 1000
# The two channels of these pairs are in one group if there are fewer than 2, 4,
# 8 and 16 groups, respectively, and otherwise in two.
PAIRS = (0, 16), (0, 8), (24, 28), (16, 18)


def pairs():
    """Return images and labels, for training and testing: always the same.

    An image is Gaussian noise of standard deviation 0.5, `(8, 8, 32)`. At a
    random place, the same in all channels, each channel has a square of 3x3
    pixels that is raised or lowered by 1 at random. Whether the two channels of
    a pair have the same sign is one bit of the label; the four pairs make 16
    classes.

    One channel of a pair says nothing about the pair's bit. Where groups
    exchange nothing, the score of a class is a sum over the groups, and for a
    pair whose channels are in two groups the least cross-entropy is that of
    guessing. So with 2, 4, 8 and 16 groups, group convolution is expected to
    err in 1/2, 3/4, 7/8 and 15/16 of the images, however it is trained.
    """
    rng = np.random.default_rng(0)
    count = sum(COUNTS)
    signs = rng.choice(np.array([-1, 1], "float32"), (count, CHANNELS))
    x = rng.standard_normal((count, SIDE, SIDE, CHANNELS), "float32") * NOISE
    rows, columns = rng.integers(0, SIDE - MARK + 1, (2, count))
    for i in range(MARK):
        for j in range(MARK):
            x[np.arange(count), rows + i, columns + j] += signs
    y = np.zeros(count, "int64")
    for bit, (one, other) in enumerate(PAIRS):
        y += (signs[:, one] != signs[:, other]) << bit
    train = COUNTS[0]
    return x[:train], y[:train], x[train:], y[train:]
