"""What was probably meant, for the ends of messages."""

from __future__ import annotations

from typing import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a hint at the name that was probably meant; empty if none is like it."""
    import difflib

    found = difflib.get_close_matches(word, list(known), 1)
    return f"did you mean '{found[0]}'?" if found else ""
