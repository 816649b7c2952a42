"""Line editing like QEMU's, on a terminal or any other stream (util/readline.c); no I/O.

Typing is echoed by redrawing the line: cursor to its start, the text, erase the rest.  Programs parse this echo, so it
is the same to the byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

MAX_LINE: Final = 4095
MAX_HISTORY: Final = 64
WIDTH: Final = 80
MAX_ESCAPE: Final = 8

_KEYS: Final[dict[str, str]] = {
    "\x01": "home", "\x02": "left", "\x04": "delete", "\x05": "end", "\x06": "right", "\x08": "backspace",
    "\t": "complete_line", "\n": "enter", "\r": "enter", "\x0b": "kill_end", "\x0c": "clear", "\x0e": "down",
    "\x10": "up", "\x15": "kill_line", "\x17": "kill_word", "\x7f": "backspace",
    "\x1b[A": "up", "\x1b[B": "down", "\x1b[C": "right", "\x1b[D": "left", "\x1b[H": "home", "\x1b[F": "end",
    "\x1bOA": "up", "\x1bOB": "down", "\x1bOC": "right", "\x1bOD": "left",
    "\x1b[1~": "home", "\x1b[3~": "delete", "\x1b[4~": "end",
}


class Readline:
    """Edits lines.

    Args:
        prompt: shown before each line.
        complete: called with the line up to the cursor; returns the words that its end could become, and how many
            characters of it they replace.
    """

    def __init__(self, prompt: str, complete: Callable[[str], tuple[Sequence[str], int]]) -> None:
        self._prompt = prompt
        self._complete = complete
        self._text = ""
        self._cursor = 0
        self._drawn: str | None = ""
        self._drawn_cursor = 0
        self._escape = ""
        self._history: list[str] = []
        self._chosen: int | None = None
        self._out: list[str] = []

    def output(self) -> str:
        """Return what to show, once."""
        text = "".join(self._out)
        self._out.clear()
        return text

    def hand_over(self) -> dict[str, object]:
        """Return what a successor needs to continue the line (`take_over`)."""
        return {"text": self._text, "cursor": self._cursor, "escape": self._escape, "history": self._history}

    def take_over(self, saved: Mapping[str, Any]) -> None:
        """Take over a predecessor's line; what it showed is still there."""
        self._text = self._drawn = saved["text"]
        self._cursor = self._drawn_cursor = saved["cursor"]
        self._escape, self._history = saved["escape"], saved["history"]

    def show_prompt(self) -> None:
        """Begin a line."""
        self._text, self._cursor, self._chosen = "", 0, None
        self._redraw_all()

    def type(self, character: str) -> str | None:
        """Take one character; return the line that it ends (`show_prompt` begins the next)."""
        key = self._key(character)
        if key is None:
            return None
        if key == "enter":
            return self._enter()
        if len(key) > 1:
            getattr(self, f"_{key}")()
        elif len(self._text) < MAX_LINE:
            self._insert(key)
        self._update()
        return None

    def _key(self, character: str) -> str | None:
        """The name of the key that a character completes, or the character itself, or None."""
        if not self._escape and character != "\x1b":
            if character in _KEYS:
                return _KEYS[character]
            return character if character >= " " else None
        sequence = self._escape + character
        self._escape = ""
        if sequence in _KEYS:
            return _KEYS[sequence]
        begun = sequence == "\x1b[" or any(key.startswith(sequence) for key in _KEYS)
        numbers = sequence.startswith("\x1b[") and sequence[2:].replace(";", "").isdigit()
        if len(sequence) < MAX_ESCAPE and (begun or numbers):
            self._escape = sequence
        return None

    # Drawing

    def _redraw_all(self) -> None:
        self._out.append(self._prompt)
        self._drawn, self._drawn_cursor = "", 0
        self._update()

    def _update(self) -> None:
        if self._text != self._drawn:
            self._out += "\x1b[D" * self._drawn_cursor, self._text, "\x1b[K"
            self._drawn, self._drawn_cursor = self._text, len(self._text)
        if self._cursor != self._drawn_cursor:
            delta = self._cursor - self._drawn_cursor
            self._out.append("\x1b[C" * delta if delta > 0 else "\x1b[D" * -delta)
            self._drawn_cursor = self._cursor

    # Keys

    def _enter(self) -> str:
        line = self._text
        self._out.append("\n")
        if line:
            if line in self._history:
                self._history.remove(line)
            self._history.append(line)
            del self._history[:-MAX_HISTORY]
        return line

    def _insert(self, text: str) -> None:
        self._text = self._text[: self._cursor] + text + self._text[self._cursor :]
        self._cursor += len(text)

    def _cut(self, begin: int, end: int) -> None:
        self._text = self._text[:begin] + self._text[end:]
        self._cursor = begin

    def _home(self) -> None:
        self._cursor = 0

    def _end(self) -> None:
        self._cursor = len(self._text)

    def _left(self) -> None:
        self._cursor = max(self._cursor - 1, 0)

    def _right(self) -> None:
        self._cursor = min(self._cursor + 1, len(self._text))

    def _delete(self) -> None:
        self._cut(self._cursor, self._cursor + 1)

    def _backspace(self) -> None:
        if self._cursor:
            self._cut(self._cursor - 1, self._cursor)

    def _kill_line(self) -> None:
        self._cut(0, self._cursor)

    def _kill_end(self) -> None:
        self._cut(self._cursor, len(self._text))

    def _kill_word(self) -> None:
        head = self._text[: self._cursor].rstrip(" ")
        self._cut(head.rfind(" ") + 1, self._cursor)

    def _clear(self) -> None:
        self._out.append("\x1b[2J\x1b[1;1H")
        self._redraw_all()

    def _up(self) -> None:
        if self._history and self._chosen != 0:
            self._choose((len(self._history) if self._chosen is None else self._chosen) - 1)

    def _down(self) -> None:
        if self._chosen is not None and self._chosen < len(self._history) - 1:
            self._choose(self._chosen + 1)
        elif self._chosen is not None:
            self._chosen = None
            self._text, self._cursor = "", 0

    def _choose(self, index: int) -> None:
        self._chosen = index
        self._text = self._history[index]
        self._cursor = len(self._text)

    def _complete_word(self, words: Sequence[str], typed: int) -> None:
        shared = words[0]
        while not all(word.startswith(shared) for word in words):
            shared = shared[:-1]
        self._insert(shared[typed:])
        if len(words) == 1 and self._text[self._cursor - 1 : self._cursor] not in (" ", "="):
            self._insert(" ")

    def _complete_line(self) -> None:
        """Complete what stands before the cursor; show the choices if there are several."""
        found, typed = self._complete(self._text[: self._cursor])
        words = sorted(set(found))
        if not words:
            return
        self._complete_word(words, typed)
        if len(words) > 1:
            width = max(max(map(len, words)) + 2, 10)
            columns = max(WIDTH // width, 1)
            rows = [words[index : index + columns] for index in range(0, len(words), columns)]
            self._out.append("\n" + "".join("".join(word.ljust(width) for word in row) + "\n" for row in rows))
            self._redraw_all()
