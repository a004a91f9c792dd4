"""Text for pictures: a font that has the characters, and lines that fit.

Pillow's own font is the same on every machine but has few characters beyond ASCII. Greek letters and some symbols
are therefore always written in ASCII; for names with other characters, a font of the system is looked for.
"""

import unicodedata
from collections.abc import Iterable
from functools import lru_cache

from PIL import ImageFont

from lrp.errors import ImageError

Font = ImageFont.FreeTypeFont

_SPELLED = str.maketrans(
    {"ε": "epsilon", "γ": "gamma", "α": "alpha", "β": "beta", "Σ": "sum", "≥": ">=", "≤": "<=", "≈": "about "}
    | dict.fromkeys("–—−‐‑", "-")
    | dict.fromkeys("‘’", "'")
    | dict.fromkeys("“”", '"')
    | {"…": "...", "×": "x", "→": "->"}
)
_SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "Arial.ttf",
    "arial.ttf",
    "Arial Unicode.ttf",
    "NotoSansCJK-Regular.ttc",
    "PingFang.ttc",
    "msyh.ttc",
    "segoeui.ttf",
)


@lru_cache
def font(face: str | None, size: int) -> Font:
    """Pillow's own font, or the font file `face` of the system."""
    letters = ImageFont.load_default(size) if face is None else ImageFont.truetype(face, size)
    if not isinstance(letters, Font):
        raise ImageError("expected a Pillow that draws text at any size, got one built without FreeType")
    return letters


@lru_cache(4096)
def _has(face: str | None, character: str) -> bool:
    letters = font(face, 20)
    # Compared as pictures: a missing character is drawn like U+FFFF, which no font has.
    masks = [letters.getmask(text) for text in (character, "\uffff")]
    return character == " " or masks[0].size != masks[1].size or bytes(masks[0]) != bytes(masks[1])


def typeface(texts: Iterable[str]) -> str | None:
    """Pillow's own font (None) if it has all characters, else the font that lacks the fewest."""
    wanted = {c for text in texts for c in " ".join(text.translate(_SPELLED).split())}
    best, least = None, sum(not _has(None, c) for c in wanted)
    for face in _SYSTEM_FONTS:
        if not least:
            break
        try:
            lacking = sum(not _has(face, c) for c in wanted)
        except OSError:  # not on this machine
            continue
        if lacking < least:
            best, least = face, lacking
    return best


def text_in_font(text: str, face: str | None) -> str:
    """The text on one line, in characters that the font has; others lose their accents, or become "?"."""
    written = ""
    for character in " ".join(text.translate(_SPELLED).split()):
        plain = "".join(c for c in unicodedata.normalize("NFKD", character) if not unicodedata.combining(c))
        written += next((c for c in (character, plain) if c and all(_has(face, part) for part in c)), "?")
    return written


def wrapped(text: str, letters: Font, width: float, lines: int) -> list[str]:
    """At most `lines` lines no wider than `width`; longer words are broken, and "..." replaces what does not fit."""
    result: list[str] = []
    rest = text
    while rest:
        length = len(rest)
        while length > 1 and letters.getlength(rest[:length]) > width:
            length -= 1
        if length < len(rest):
            # Not between a number and its percent sign.
            breaks = [at for at in range(1, length + 1) if rest[at] == " " and rest[at + 1 : at + 2] != "%"]
            length = breaks[-1] if breaks else length
        result.append(rest[:length].rstrip())
        rest = rest[length:].lstrip()
        if rest and len(result) == lines:
            last = result[-1] + " " + rest
            while last and letters.getlength(last.rstrip() + "...") > width:
                last = last[:-1]
            result[-1] = last.rstrip() + "..."
            break
    return result
