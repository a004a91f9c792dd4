"""A hook of mkdocs: hides the side bars of pages with one wide table. Such pages are generated, so it is set here."""

from __future__ import annotations

from typing import Any

WIDE = {"models.md"}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    if page.file.src_uri in WIDE:
        page.meta["hide"] = ["navigation", "toc"]
    return markdown
