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
# The names of the 32 controls in order; their pictures in Unicode are missing from many fonts.
_NAMES = (
    *(
        "NUL",
        "SOH",
        "STX",
        "ETX",
        "EOT",
        "ENQ",
        "ACK",
        "BEL",
        "BS",
        "TAB",
        "LF",
        "VT",
        "FF",
        "CR",
        "SO",
        "SI",
    ),
    *("DLE", "DC1", "DC2", "DC3", "DC4", "NAK", "SYN", "ETB", "CAN", "EM", "SUB", "ESC"),
    *("FS", "GS", "RS", "US"),
)


def inert(text: str) -> str:
    """The text with every steering character replaced by a sign for it; other characters as they are."""
    return _STEERING.sub(_sign, text)


def inert_line(text: str) -> str:
    """As `inert`, for text that has to stay on one line: tabs and line feeds are shown as well."""
    return inert(text).replace("\t", _bracketed("TAB")).replace("\n", _bracketed("LF"))


def _sign(match: re.Match[str]) -> str:
    code = ord(match[0])
    return _bracketed(_NAMES[code] if code < 0x20 else f"U+{code:04X}")


def _bracketed(name: str) -> str:
    return f"\u27e8{name}\u27e9"
