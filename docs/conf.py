"""How the documentation is built: ``make docs``."""

import sys
from pathlib import Path

import erllama_py

sys.path.insert(0, str(Path(__file__).parent))  # for contract_table

project = "erllama_py"
author = "the erllama_py authors"
version = release = erllama_py.__version__
copyright = author  # noqa: A001 - Sphinx reads this name

extensions = ["myst_parser", "sphinx.ext.autodoc", "contract_table"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
nitpicky = False
autodoc_typehints = "signature"
autodoc_member_order = "bysource"

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

html_theme = "alabaster"
html_title = f"erllama_py {version}"
html_show_sourcelink = False
html_static_path = ["_static"]
