r"""A hook of mkdocs: equations become MathML while the site is built, so that no page loads a script for them.

In the pages stands LaTeX, $inline$ or in a paragraph of its own between $$. `pymdownx.arithmatex` finds it, latex2mathml
translates it, every browser of today draws it. What latex2mathml does not know fails the build: it would stand on the
page as it was typed.
"""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

# As arithmatex with generic: true marks them.
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
