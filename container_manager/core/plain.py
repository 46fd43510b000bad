"""What no program can be handed, be it as an argument, a variable or a path."""

from __future__ import annotations

#: The kernel's limit for one argument or one KEY=value, its closing NUL included (MAX_ARG_STRLEN).
MAX_ARGUMENT_BYTES = 128 * 1024


def unfit(text: str) -> str:
    """Why the text cannot reach a program, to be put behind a subject ("it ..."); empty when it can."""
    if "\0" in text:
        return "has a NUL in it, which no program can be handed; take it out"
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return "has half of a surrogate pair in it, which is no character; take it out"
    if size >= MAX_ARGUMENT_BYTES:
        return f"has {size} bytes, and Linux hands over less than 128 KiB at once; put the data into a file"
    return ""
