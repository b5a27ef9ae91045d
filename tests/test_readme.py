import re
from pathlib import Path

import keras
import pytest

README = Path(__file__).parent.parent / "README.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_snippets_are_found():
    assert len(SNIPPETS) == 3


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippet_builds_a_model(snippet):
    keras.config.set_image_data_format("channels_last")
    names = {}
    exec(snippet, names)
    x = keras.random.uniform((1, *names["model"].input_shape[1:]))
    assert names["model"](x).shape[0] == 1


def test_parameters_in_the_readme():
    from keras_tlgc.applications import WideResNet28x10
    from keras_tlgc.costs import count_params

    count = count_params(lambda: WideResNet28x10(conv="two_level", groups=8))
    assert f"# {count / 1e6:.2f}M parameters" in README.read_text()
