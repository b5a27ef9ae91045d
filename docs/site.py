"""A hook of MkDocs: the site holds files where the repository has them.

So a relative link means the same on both. Whatever a page links to is taken in,
from wherever it is, and a page of `docs/` loses that part of its address.
"""

import os
import re
from pathlib import Path

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
OUTSIDE = ["benchmarks/README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
LINK = re.compile(r"\]\(([^)#\s:]+)")


def on_files(files, config):
    """Name the files of `docs/` from the root, and add what they link to."""
    own = [f for f in files if f.src_dir == config.docs_dir]
    placed = [f for f in files if f not in own]
    names = [f"docs/{file.src_uri}" for file in own] + OUTSIDE
    for name in names:  # Which grows.
        file = File.generated(config, name, abs_src_path=str(ROOT / name))
        if name.startswith("docs/") or name == "README.md":
            place = name.removeprefix("docs/").replace("README", "readme")
            file.dest_uri = File.generated(config, place, content="").dest_uri
        placed.append(file)
        for link in linked(ROOT / name):
            if (ROOT / link).is_file() and link not in names:
                names.append(link)
    return Files(placed)


def linked(path):
    """Return what a page links to, as paths from the root."""
    if path.suffix != ".md":
        return []
    links = LINK.findall(path.read_text())
    return [os.path.relpath(path.parent / link, ROOT) for link in links]
