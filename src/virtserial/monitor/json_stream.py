"""JSON values from a stream of bytes, parsed as QEMU does, with QEMU's errors; no I/O.

A client may send several values in a line or one over many lines, may quote strings with ', and discards a half-sent
value by a byte 0xFF.  Memory is bounded: a value has at most MAX_BYTES, MAX_TOKENS and MAX_NESTING; nothing here is
recursive.  (qobject/json-lexer.c, json-streamer.c, json-parser.c.)
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from virtserial.errors import VirtserialError
from virtserial.named_tuple import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_BYTES: Final = 1 << 20
"""QEMU takes 64 MiB."""
MAX_TOKENS: Final = 1 << 14
"""QEMU takes 2 Mi; a value is parsed in one turn of the keeper's loop."""
MAX_WORD: Final = 1 << 12
"""Bytes of a number or keyword: it is matched anew whenever more of it comes."""
MAX_NESTING: Final = 512
"""QEMU takes 1024; Python's json, which writes the answers, is recursive."""

# Possessive quantifiers: backtracking into a string of a MiB would cost a hundred times its size in memory.
_SPACE = re.compile(rb"[ \t\r\n]*")
_TOKEN = re.compile(
    rb"""(?P<structural>[{}\[\]:,])
    |(?P<number>-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)
    |(?P<keyword>[a-z]+)""",
    re.VERBOSE,
)
_UNFINISHED = re.compile(rb"-?[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]*)?|-|[a-z]+")
_STRINGS = {
    quote: re.compile(rb"(?:[^%b\\\x00-\x1f\xfe\xff]++|\\[^\x00-\x1f\xfe\xff])*+" % quote) for quote in (b'"', b"'")
}
"""By its quotation mark: as much of a string's content as there is."""
_OPEN_ENDED = frozenset(("number", "keyword"))
"""Tokens that only the byte after them ends."""
_AFTER_ERROR = re.compile(rb"[\x00-\x08\x0a-\x1f\xfe\xff{}\[\]:,]")
"""Where parsing resumes after bytes that are no token."""
_ESCAPE = re.compile(r"\\(u[0-9A-Fa-f]{4}|.?)", re.DOTALL)
_ESCAPES = {'"': '"', "'": "'", "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_KEYWORDS = {"true": True, "false": False, "null": None}


def _after_error(data: bytearray, start: int) -> int:
    found = _AFTER_ERROR.search(data, start)
    return found.start() if found else -1


def _after_limit(data: bytearray, start: int) -> int:
    """The next newline or discarding byte; by memchr, since it may be a gibibyte away."""
    return min((place for byte in (b"\n", b"\xff") if (place := data.find(byte, start)) >= 0), default=-1)


class JsonError(VirtserialError):
    """Bytes that are not JSON, or too much of it.  The text is QEMU's."""


class Token(NamedTuple):
    """A token and where it began (lines and columns count from 1)."""

    kind: str
    text: bytes
    line: int
    column: int

    def error(self, what: str) -> JsonError:
        """Return an error at this token."""
        return JsonError(f"{self.line}:{self.column}: JSON parse error, {what}")


class JsonStream:
    """Takes bytes as they come; yields values and errors in order."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._position = 0
        self._scanned = 0
        """Up to where the string that begins at _position was matched."""
        self._tokens: list[Token] = []
        self._size = 0
        self._braces = self._brackets = 0
        self._line = self._column = 1
        self._skip: Callable[[bytearray, int], int] | None = None

    def feed(self, data: bytes) -> Iterator[object | JsonError]:
        """Yield the values (as of json.loads) and JsonErrors that these bytes complete."""
        del self._data[: self._position]
        self._data += data
        self._scanned = max(self._scanned - self._position, 0)
        self._position = 0
        while True:
            if self._skip is not None and not self._skipped(self._skip):
                return
            space = _SPACE.match(self._data, self._position)
            self._advance(space.end() if space else self._position)
            waiting = len(self._data) - self._position
            if not waiting:
                return
            quote = bytes(self._data[self._position : self._position + 1])
            if (content := _STRINGS.get(quote)) is not None:
                end = self._end_of(content)
                last = self._data[end : end + 1]
                if last == quote:
                    yield from self._token("string", bytes(self._data[self._position : end + 1]))
                elif self._size + waiting > MAX_BYTES:
                    yield self._over("token size")
                elif end + len(last) == len(self._data) and bytes(last) in (b"", b"\\"):
                    return
                else:
                    yield self._stray(end + (last == b"\\"))
                continue
            matched = _TOKEN.match(self._data, self._position)
            if matched is None or matched.lastgroup in _OPEN_ENDED:
                unfinished = _UNFINISHED.fullmatch(self._data, self._position)
                if matched is None or unfinished:
                    if self._size + waiting > MAX_BYTES or (unfinished and waiting > MAX_WORD):
                        yield self._over("token size")
                    elif unfinished:
                        return
                    else:
                        begun = _UNFINISHED.match(self._data, self._position)
                        yield self._stray(begun.end() if begun else self._position)
                    continue
            yield from self._token(str(matched.lastgroup), matched[0])

    def unfinished(self) -> bytes | None:
        """The bytes of the unfinished value, for another stream; None while it skips to the end of an error."""
        if self._skip is not None:
            return None
        # A space between tokens has no meaning.
        return b" ".join([*(token.text for token in self._tokens), bytes(self._data[self._position :])])

    def _end_of(self, content: re.Pattern[bytes]) -> int:
        """Where the content of the string at the position ends so far; what was scanned before is not scanned again."""
        matched = content.match(self._data, max(self._scanned, self._position + 1))
        self._scanned = matched.end() if matched else self._scanned
        return self._scanned

    def _advance(self, end: int) -> None:
        """Move to an offset of the data; count lines and columns."""
        start, self._position = self._position, end
        lines = self._data.count(b"\n", start, end)
        self._line += lines
        self._column = end - self._data.rfind(b"\n", start, end) if lines else self._column + end - start

    def _skipped(self, until: Callable[[bytearray, int], int]) -> bool:
        found = until(self._data, self._position)
        self._advance(found if found >= 0 else len(self._data))
        if found < 0:
            return False
        if self._data[found] in (0xFE, 0xFF):
            self._advance(found + 1)
        self._skip = None
        return True

    def _reset(self) -> None:
        self._tokens = []
        self._size = self._braces = self._brackets = 0

    def _over(self, limit: str) -> JsonError:
        self._reset()
        self._skip = _after_limit
        return JsonError(f"JSON {limit} limit exceeded")

    def _stray(self, end: int) -> JsonError:
        """Handle bytes that begin no token, or break one off at `end`."""
        token = Token("stray", bytes(self._data[self._position : end + 1]), self._line, self._column)
        text = token.text.decode(errors="replace")
        self._advance(end + 1)
        if not token.text.endswith((b"\xfe", b"\xff")):
            self._skip = _after_error
        self._reset()
        return token.error(f"stray '{text}'")

    def _token(self, kind: str, text: bytes) -> Iterator[object | JsonError]:
        token = Token(kind, text, self._line, self._column)
        self._advance(self._position + len(text))
        self._tokens.append(token)
        self._size += len(text)
        if kind == "structural":
            self._braces += (text == b"{") - (text == b"}")
            self._brackets += (text == b"[") - (text == b"]")
        if self._braces + self._brackets > MAX_NESTING:
            yield self._over("nesting depth")
        elif len(self._tokens) > MAX_TOKENS:
            yield self._over("token count")
        elif self._size > MAX_BYTES:
            yield self._over("token size")
        elif min(self._braces, self._brackets) < 0 or not (self._braces or self._brackets):
            tokens = self._tokens
            self._reset()
            try:
                yield parse(tokens)
            except JsonError as error:
                yield error


def parse(tokens: list[Token]) -> object:
    """Return the value of some tokens.

    Raises:
        JsonError: a syntax error.
    """
    result: list[object] = []
    stack: list[tuple[dict[str, object] | list[object], str]] = [(result, "")]
    position = 0

    def take() -> Token:
        nonlocal position
        if position == len(tokens):
            last = tokens[-1]
            raise JsonError(f"{last.line}:{last.column}: JSON parse error, premature EOI")
        position += 1
        return tokens[position - 1]

    def read_key(container: dict[str, object], token: Token) -> str:
        if token.kind != "string":
            raise token.error("expecting key")
        key = _string(token)
        if key in container:
            raise token.error("duplicate key")
        colon = take()
        if colon.text != b":":
            raise colon.error("expecting ':'")
        return key

    token = take()
    while True:
        # A value begins here.
        container, key = stack[-1]
        value = _value(token)
        if isinstance(container, dict):
            container[key] = value
        else:
            container.append(value)
        if isinstance(value, (dict, list)):
            stack.append((value, ""))
            token = take()
            if isinstance(value, dict) and token.text != b"}":
                stack[-1] = value, read_key(value, token)
                token = take()
                continue
            if isinstance(value, list) and token.text != b"]":
                continue
            stack.pop()
        # A value has ended: a comma or its container's end follows.
        while len(stack) > 1:
            container, _ = stack[-1]
            token = take()
            end = b"}" if isinstance(container, dict) else b"]"
            if token.text == b",":
                token = take()
                if isinstance(container, dict):
                    stack[-1] = container, read_key(container, token)
                    token = take()
                break
            if token.text != end or token.kind != "structural":
                raise token.error(f"expected ',' or '{end.decode()}'")
            stack.pop()
        else:
            return result[0]


def _value(token: Token) -> object:
    """The value that a token is or begins."""
    if token.kind == "string":
        return _string(token)
    if token.kind == "number":
        return _number(token)
    if token.kind == "keyword":
        word = token.text.decode()
        if word not in _KEYWORDS:
            raise token.error(f"invalid keyword '{word}'")
        return _KEYWORDS[word]
    if token.text == b"{":
        return {}
    if token.text == b"[":
        return []
    raise token.error("expecting value")


def _number(token: Token) -> int | float:
    """Integers of 64 bits, signed or not; all else is floating point."""
    text = token.text
    if text.lstrip(b"-").isdigit() and len(text) <= 20:
        number = int(text)
        if -(1 << 63) <= number < 1 << 64:
            return number
    value = float(text)
    if value - value:  # inf - inf is no number
        raise token.error("number out of range")
    return value


def _string(token: Token) -> str:
    try:
        text = token.text[1:-1].decode()
    except UnicodeDecodeError:
        raise token.error("invalid UTF-8 sequence in string") from None
    if "\\" not in text:
        return text

    def unescape(matched: re.Match[str]) -> str:
        escape = matched[1]
        if len(escape) == 5:
            return chr(int(escape[1:], 16))
        if escape == "u":
            raise token.error("invalid hex escape in string")
        if escape not in _ESCAPES:
            raise token.error("invalid escape sequence in string")
        return _ESCAPES[escape]

    unescaped = _ESCAPE.sub(unescape, text)
    try:
        # Pairs of surrogates become one character; a lone one is none.
        unescaped = unescaped.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        lone = next(char for char in unescaped if 0xD800 <= ord(char) < 0xE000)
        raise token.error(f"\\u{ord(lone):04x} is not a valid Unicode character") from None
    if "\0" in unescaped:
        raise token.error("\\u0000 is not a valid Unicode character")
    return unescaped
