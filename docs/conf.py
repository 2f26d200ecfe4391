"""Settings of the documentation site: `make docs` builds it with warnings as errors."""

from typing import Any

import negvae

project = "negvae"
author = "The negvae developers"
copyright = "the negvae developers"
version = release = negvae.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["build"]
suppress_warnings = ["myst.xref_missing"]  # links to folders of the repository; tests/test_docs.py checks all links
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath", "colon_fence"]

html_theme = "furo"
html_title = "negvae"
html_theme_options = {"source_repository": "", "navigation_with_keys": True}
html_copy_source = False
html_show_sphinx = False

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings give shapes and units, signatures would repeat them
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
default_role = "code"
nitpicky = False


def plain(app: Any, what: str, name: str, item: Any, options: Any, lines: list[str]) -> None:
    """Keep characters of docstrings that reStructuredText would take for markup: |x| and **kwargs."""
    for number, line in enumerate(lines):
        parts = line.split("`")
        parts[::2] = [part.replace("|", r"\|").replace("*", r"\*") for part in parts[::2]]
        lines[number] = line if line.lstrip().startswith(">>>") else "`".join(parts)


def skip(app: Any, what: str, name: str, item: Any, skipped: bool, options: Any) -> bool | None:
    """Leave out what scikit-learn documents itself."""
    foreign = str(getattr(item, "__module__", "")).startswith("sklearn") or name.endswith("_request")
    return True if foreign or name in ("get_metadata_routing", "set_output") else None


def setup(app: Any) -> None:
    """Connect the two functions above."""
    app.connect("autodoc-process-docstring", plain, priority=900)  # after napoleon
    app.connect("autodoc-skip-member", skip)
