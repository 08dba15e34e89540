"""Text of paper.yaml as HTML: paragraphs, lists, `code` and $formulas$; everything else stays as written."""

from __future__ import annotations

from functools import cache

from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from markupsafe import Markup
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer


@cache
def _markdown() -> MarkdownIt:
    # no emphasis and no HTML: 'f*' and '<script>' are text
    return (
        MarkdownIt("zero")
        .enable(["backticks", "list"])
        .use(dollarmath_plugin, allow_digits=False, allow_space=False, renderer=_formula)
    )


def _formula(latex: str, options: dict[str, bool]) -> str:
    return str(convert(latex, display="block" if options["display_mode"] else "inline"))


def html(text: str) -> Markup:
    """Text as HTML; what is between $ signs is LaTeX and becomes MathML."""
    return Markup(_markdown().render(text))


def code(source: str) -> Markup:
    """Python source, highlighted; the keyboard can scroll it."""
    shown = highlight(source, PythonLexer(), HtmlFormatter(cssclass="source"))
    return Markup(shown.replace("<pre>", '<pre tabindex="0">', 1))
