"""A document of plain values -> one self-contained HTML file, which makes no requests.

All text of the document is in the page as JSON, escaped so that no character can end the script element; the page
inserts it as text, never as HTML. A content-security policy allows only the one script and the one style, by their
hashes, and pictures from the file itself.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from lrp.errors import ReportError

HERE = Path(__file__).parent
ESCAPES = str.maketrans(
    {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
)


def render_json(document: Any) -> str:
    """JSON that is safe inside a script element."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.translate(ESCAPES).encode("utf-8", "backslashreplace").decode("utf-8")


def render(document: dict[str, Any]) -> str:
    """The HTML page.

    Raises:
        ReportError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise ReportError("a report needs jinja2: pip install 'lrp[report]'.") from error
    css, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    page = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    ).get_template("page.html")
    return page.render(
        title=document["title"],
        data=Markup(render_json(document)),
        css=Markup(css),
        script=Markup(script),
        csp=_security_policy(css, script),
    )


def _security_policy(css: str, script: str) -> str:
    """The content-security policy, with the hashes of the exact text between the tags."""
    return (
        f"default-src 'none'; img-src data: blob:; style-src {_hash(css)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"
