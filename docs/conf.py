"""How Sphinx builds these documents: `sphinx-build -W docs build/html`."""

import tomllib
from pathlib import Path

_PROJECT = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())

project = "Mainboard"
author = "The Mainboard authors"
copyright = author
version = release = _PROJECT["project"]["version"]

extensions = ["myst_parser"]
html_theme = "furo"
html_title = f"Mainboard {release}"
myst_heading_anchors = 3
# Links to files outside docs/ are for readers of the repository.
suppress_warnings = ["myst.xref_missing"]
