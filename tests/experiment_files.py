"""Files of experiments: the paper's, and a tiny one."""

from pathlib import Path

CONFIGS = sorted(
    (Path(__file__).parents[1] / "examples" / "paper").glob("*.toml")
)
TINY = """
title = "Tiny"
convs = ["standard", "group"]
groups = [2]
seeds = [0]

[[parts]]
data = "tiny"
model = "wrn-10-1"
epochs = 2
batch_size = 16

[[parts]]
data = "folder"
model = "wrn-imagenet-10-1"
groups = [4, 8]
"""


def write(path, text=TINY):
    path.write_text(text, "utf-8")
    return path
