"""An extension of griffe: docstrings of Keras' style, for the site."""

import re

import griffe

EXAMPLE = re.compile(r"^((?:>>>|\.\.\.) .*(?:\n(?!\n).*)*)", re.M)


class KerasStyle(griffe.Extension):
    """Fence `>>>` examples, which stand at the margin in Keras' style."""

    def on_object(self, *, obj, **kwargs):
        if obj.docstring:
            obj.docstring.value = EXAMPLE.sub(
                r"```pycon\n\1\n```", obj.docstring.value
            )
