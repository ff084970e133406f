"""The site: `make docs` builds it into build/site, without a warning."""

import sona

project = "sona"
author = "the sona authors"
project_copyright = "the sona authors"
release = version = sona.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
nitpicky = False  # types in docstrings are words for people
autosummary_generate = True
autodoc_default_options = {"members": True, "undoc-members": True, "inherited-members": True}
autodoc_member_order = "groupwise"
autodoc_typehints = "signature"
napoleon_google_docstring = False
napoleon_custom_sections = ["Thread-safety"]
napoleon_use_ivar = True
templates_path = ["_templates"]

root_doc = "index"
html_theme = "furo"
html_title = f"sona {version}"
html_copy_source = False
html_show_sphinx = False
myst_heading_anchors = 3
suppress_warnings = ["ref.python"]  # one class may have two addresses: where it is written, and sona


def setup(app):
    """On the site, the README is several pages."""
    app.connect("source-read", lambda _app, _page, source: source.__setitem__(0, source[0].replace("(../README.md)", "(measured.md)")))
