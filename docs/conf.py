"""How Sphinx makes a book of this folder: python -m sphinx -W docs docs/_build"""

project = "selfreward_jax"
extensions = ["myst_parser"]
exclude_patterns = ["_build"]
html_theme = "furo"
myst_heading_anchors = 3
