"""The documentation site; `make docs` builds it into build/docs."""

import os
import re
import sys
from pathlib import Path

from sphinx.util.inspect import TypeAliasForwardRef

import conv2affine

sys.path.append(str(Path(__file__).parents[1]))  # for docs.operator_tables

project = "conv2affine"
author = copyright = "the conv2affine authors"
version = release = conv2affine.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
myst_heading_anchors = 3
default_role = "py:obj"  # `name` in a docstring is a link if it is documented here, and code otherwise
highlight_language = "none"

add_module_names = False
autodoc_inherit_docstrings = False  # PyTorch's describe what a subclass has to do
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
# Types that docs/api/index.md explains, and NumPy's
NETWORK_TYPES = "BoxBounds ExampleInputs Form MaxPool Merge Model NetworkLayout"
TYPES = f"Array ArrayLike Conv InputSize Layout Padding Sizes {NETWORK_TYPES}"
autodoc_type_aliases = {name: name for name in TYPES.split()}
TypeAliasForwardRef.__repr__ = lambda self: self.name  # which a union shows
maximum_signature_line_length = 100
RESULTS = [
    "Case",
    "Comparison",
    "Conversion",
    "LinearRegion",
    "NetworkPlan",
    "Plan",
    "Row",
    "ShardedSparseLinear",
    "Specification",
]
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Returns"]  # prose: napoleon would take what stands before a colon for a type
copybutton_exclude = ".gp, .go"  # prompts and output

# Each example is run anew: its page, its picture and its checks belong to this version.
sphinx_gallery_conf = {
    "examples_dirs": "../examples/gallery",
    "gallery_dirs": "gallery",
    "within_subsection_order": "ExampleTitleSortKey",
    "run_stale_examples": True,
    "capture_repr": (),
    "image_srcset": ["2x"],
    "download_all_examples": False,
    "show_signature": False,
    "write_computation_times": False,
    "min_reported_time": float("inf"),
}

html_theme = "furo"
html_title = f"conv2affine {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False


def to_restructured_text(app, what, name, obj, options, lines):
    """Mark up what docstrings leave plain: indented equations, and the star in `(out, in, *kernel_size)`."""
    result, in_block, in_section = [], False, False
    for line in lines:
        if line and not line.startswith(" "):
            in_block, in_section = False, re.fullmatch("(Args|Attributes|Returns|Raises|Example):", line)
        elif line and not in_block and not in_section and result and not result[-1]:
            result += ["::", ""]
            in_block = True
        is_code = in_block or line.lstrip().startswith((">>>", "..."))
        result.append(line if is_code else re.sub(r"(?<![\w*\\])\*(?=[a-z])", r"\\*", line))
    lines[:] = result


def without_signature(app, what, name, obj, options, signature, returns):
    """Leave out how a result is made: functions do that."""
    return ("", None) if what == "class" and obj.__name__ in RESULTS else None


def link_to_gallery(app, docname, source):
    """On GitHub a guide links to the source of an example, on the site to its page."""
    text = source[0].replace("(../examples/gallery)", "(gallery/index.rst)")
    source[0] = re.sub(r"\(\.\./examples/gallery/(\w+)\.py\)", r"(gallery/\1.rst)", text)


def fill_in_operators(app, docname, source):
    """The tables of supported operators, from what the examples become now."""
    if docname == "operators":
        from docs.operator_tables import tables

        for name, text in tables().items():
            source[0] = source[0].replace(f"<!-- {name} -->", text)


def link_to_repository(app, docname, source):
    """Only a workflow on GitHub knows where the repository is."""
    if docname == "index" and (name := os.environ.get("GITHUB_REPOSITORY")):
        url = f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{name}"
        source[0] = source[0].replace("<!-- repository -->", f"[Repository]({url}).")


def setup(app):
    """Docstrings come before napoleon, which has the default priority of 500, turns sections into fields."""
    app.connect("autodoc-process-docstring", to_restructured_text, priority=400)
    app.connect("autodoc-process-signature", without_signature)
    app.connect("source-read", link_to_gallery)
    app.connect("source-read", fill_in_operators)
    app.connect("source-read", link_to_repository)
