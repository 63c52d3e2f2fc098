"""Values in messages."""

from __future__ import annotations


def shorten(text: str, most: int = 40) -> str:
    """Cut a text to at most so many characters, and end it in dots where something is left out."""
    return text if len(text) <= most else text[: most - 3] + "..."
