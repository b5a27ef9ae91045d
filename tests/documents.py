"""The pages of the project, and the code they show."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def snippets(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
