"""How Sphinx makes a book of this folder: python -m sphinx -W docs docs/_build"""

import sys
from pathlib import Path

project = "selfreward_jax"
extensions = ["myst_parser"]
exclude_patterns = ["_build"]
html_theme = "furo"
myst_heading_anchors = 3


def _write_settings() -> None:
    """The page of all settings is made at each build, so it cannot be out of date."""
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    import settings_page

    settings_page.PAGE.write_text(settings_page.page())


_write_settings()
