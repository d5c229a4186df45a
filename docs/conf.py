"""How Sphinx makes a site of the Markdown files: `make docs`.

The source folder is the repository, so that README.md, the experiments' own pages and docs/ link to
each other by the same relative paths as on a code host.
"""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]

project = "lmech"
author = "the authors of lmech"
version = release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "docs/contents"
include_patterns = ["*.md", "docs/*.md", "docs/*.rst", "experiments/*/README.md"]
exclude_patterns = [".*", "build", "dist", "outputs", "conf", "lmech", "tests", "scripts"]
html_static_path = ["static"]
html_css_files = ["lmech.css"]
html_extra_path = ["site"]  # index.html, which leads to docs/index.html

myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # a page may begin below the first level
highlight_language = "none"  # of blocks that name no language, as shell lines and tables
nitpicky = False

html_theme = "furo"
html_title = f"lmech {version}"
html_show_copyright = False
html_copy_source = False

autodoc_typehints = "description"
autodoc_member_order = "bysource"
