"""A task that groups of channels cannot solve unless they talk."""

import numpy as np

CHANNELS = 32
SIDE, MARK = 8, 3  # Pixels.
NOISE = 0.5
COUNTS = 4000, 1000
# Both channels of a pair are in one group while there are fewer than 2, 4, 8
# and 16 groups, and in two from then on.
PAIRS = (0, 16), (0, 8), (24, 28), (16, 18)


def pairs():
    """Return images and labels, for training and testing: always the same.

    An image is Gaussian noise of standard deviation 0.5, `(8, 8, 32)`. At a
    random place each channel has a square of 3x3 pixels raised or lowered by 1,
    which of the two at random. Whether the two channels of a pair have the same
    sign is one bit of the label; the four pairs make 16 classes.

    One channel of a pair says nothing about its bit. Where groups never talk,
    the score of a class is a sum over the groups, and for a pair that two of
    them share the least cross-entropy is that of guessing. So with 2, 4, 8 and
    16 groups, group convolution is expected to err in 1/2, 3/4, 7/8 and 15/16
    of the images, however it is trained.
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
