"""A hook of mkdocs: pages that are one wide table have the room of the side bars. Here, since such pages are generated."""

from __future__ import annotations

from typing import Any

WIDE = {"models.md"}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    if page.file.src_uri in WIDE:
        page.meta["hide"] = ["navigation", "toc"]
    return markdown
