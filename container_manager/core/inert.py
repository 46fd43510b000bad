"""Text from outside, made harmless to look at: what would steer a display is shown instead.

Names, commands and output are written by others. A terminal escape, a carriage return or a mark that turns
the writing direction round can make a reader see what is not there; here each of them becomes a visible
sign. Escaping for HTML is the template's business and comes on top.
"""

from __future__ import annotations

import re

# Controls but for tab and line feed; line and paragraph separators; marks of direction and invisible
# characters that can hide or reorder text; lone surrogates, which no encoding accepts. The joiners
# U+200C and U+200D stay: some scripts and emoji cannot be written without them.
_STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
_PICTURES = 0x2400  # U+2400 is the picture of U+0000, and so on for the 32 controls
_PICTURE_OF_DELETE = "\u2421"


def inert(text: str) -> str:
    """The text with every steering character replaced by a sign for it; other characters as they are."""
    return _STEERING.sub(_sign, text)


def inert_line(text: str) -> str:
    """As `inert`, for text that has to stay on one line: tabs and line feeds are shown as well."""
    return inert(text).replace("\t", chr(_PICTURES + 9)).replace("\n", chr(_PICTURES + 10))


def _sign(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(_PICTURES + code)
    if code == 0x7F:
        return _PICTURE_OF_DELETE
    return f"\u27e8U+{code:04X}\u27e9"
