r"""A hook of mkdocs: converts equations to MathML while the site is built, so that pages need no script for them.

The pages contain LaTeX, $inline$ or in a separate paragraph between $$. `pymdownx.arithmatex` finds it, latex2mathml
converts it, all current browsers display it. Unknown LaTeX commands make the build fail: otherwise they would appear on
the page as source text.
"""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

# The markup of arithmatex with generic: true.
_EQUATION = re.compile(
    r'<(span|div) class="arithmatex">(?:\\\((.+?)\\\)|\\\[(.+?)\\\])</\1>', flags=re.DOTALL
)


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """The page's HTML with its equations as MathML."""

    def mathml(found: re.Match[str]) -> str:
        latex = html.unescape(found[2] or found[3]).strip()
        result = convert(latex, display="inline" if found[1] == "span" else "block")
        unknown = re.search(r"\\[A-Za-z]+|&(?![#\w])|<mi>&</mi>", result)
        if unknown:
            raise PluginError(f"{page.file.src_uri}: latex2mathml knows no {unknown[0]} in: {latex}")
        return result if found[1] == "span" else f'<div class="equation">{result}</div>'

    return _EQUATION.sub(mathml, content)
