"""QEMU's option strings: `driver,key=value,flag,noflag`, a comma in a value doubled; or a JSON object.

Rules and texts are those of QEMU 11.1 (util/qemu-option.c, qapi/string-input-visitor.c), compared with its binary.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from virtserial.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ON = ("on", "yes", "true", "y")
OFF = ("off", "no", "false", "n")

# Compiled by the first option of their kind.
_IDENTIFIER = r"[A-Za-z][A-Za-z0-9._-]*\Z"
# Python refuses to convert thousands of digits; more than 40 are out of range anyway.
_NUMBER = r"\s*([+-]?)(0[xX][0-9A-Fa-f]{1,40}|0[0-7]{0,40}|[1-9][0-9]{0,40})\Z"
_SIZE = r"\s*(-?)([0-9]{1,40}(?:\.[0-9]{1,40})?|0[xX][0-9A-Fa-f]{1,40})([bBkKmMgGtTpPeE]?)\Z"
_SIZE_SHIFT = {"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60}

MOST_NAMES = 8
"""How many names a hint lists."""
IDENTIFIER_TEXT = (
    "Parameter 'id' expects an identifier\n"
    "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter."
)
SIZE_TEXT = (
    "Parameter '{name}' expects a non-negative number below 2^64\n"
    "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n"
    "and exabytes, respectively."
)


def parse_options(text: str, implied: str) -> dict[str, object]:
    """Parse one option argument into a dict; the last value of a repeated key counts.

    Values of key=value text are str; those of JSON have JSON's types.  A first word without `=` is the value of the key
    `implied`; a later one is a flag: `name` is name=on, `noname` is name=off.

    Raises:
        ConfigError: invalid JSON, or not an object.
    """
    if text.startswith("{"):
        return _parse_json(text)
    return dict(key_values(text, implied))


def _parse_json(text: str) -> dict[str, object]:
    import json

    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"JSON parse error, {error}") from error
    except RecursionError as error:
        raise ConfigError("JSON parse error, nesting too deep") from error
    if not isinstance(value, dict):
        raise ConfigError("JSON parse error, expecting an object")
    return value


def key_values(text: str, implied: str) -> Iterator[tuple[str, str]]:
    """Yield all (key, value) pairs of key=value text in order."""
    for index, word in enumerate(_split_at_commas(text)):
        key, equals, value = word.partition("=")
        if equals:
            yield key, value
        elif index == 0:
            yield implied, word
        elif word.startswith("no"):
            yield word[2:], "off"
        elif word:
            yield word, "on"


def to_text(pairs: Iterable[tuple[str, object]]) -> str:
    """Return key=value text, the reverse of `key_values`."""
    return ",".join(f"{key}={str(value).replace(',', ',,')}" for key, value in pairs)


def _split_at_commas(text: str) -> list[str]:
    """Split at single commas; a doubled comma becomes one."""
    words = [""]
    position = 0
    while position < len(text):
        comma = text.find(",", position)
        if comma < 0:
            words[-1] += text[position:]
            break
        words[-1] += text[position:comma]
        if text[comma + 1 : comma + 2] == ",":
            words[-1] += ","
            position = comma + 2
        else:
            words.append("")
            position = comma + 1
    return words


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a hint at the name that was probably meant; empty if none is like it."""
    import difflib

    found = difflib.get_close_matches(word, list(known), 1)
    return f"did you mean '{found[0]}'?" if found else ""


def there_is(what: str, names: Iterable[str]) -> str:
    """Return a hint at what could have been named: "the buses are ser0.0, ser1.0"."""
    known = list(names)
    if not known:
        return f"there is no {what}"
    if len(known) == 1:
        return f"the only {what} is {known[0]}"
    plural = f"{what}es" if what.endswith("s") else f"{what}s"
    more = f" and {len(known) - MOST_NAMES} more" if len(known) > MOST_NAMES else ""
    return f"the {plural} are {', '.join(known[:MOST_NAMES])}{more}"


def check_identifier(value: object) -> str:
    """Return an id: letters, digits, '-', '.', '_', beginning with a letter.

    Raises:
        ConfigError: QEMU's two lines.
    """
    if not isinstance(value, str) or not re.match(_IDENTIFIER, value):
        raise ConfigError(IDENTIFIER_TEXT)
    return value


def to_bool(name: str, value: object) -> bool:
    """on, yes, true, y or their opposites; JSON's true and false.

    Raises:
        ConfigError: anything else.
    """
    if isinstance(value, bool):
        return value
    if value in ON:
        return True
    if value in OFF:
        return False
    raise ConfigError(f"Parameter '{name}' expects 'on' or 'off'")


def to_number(name: str, value: object) -> int:
    """A non-negative integer, also in C's octal and hexadecimal.

    Raises:
        ConfigError: anything else.
    """
    number = _integer(value)
    if number is None or not 0 <= number < 1 << 64:
        raise ConfigError(f"Parameter '{name}' expects a number")
    return number


def to_uint32(name: str, value: object) -> int:
    """A device property of 32 bits; a JSON value must be a number.

    Raises:
        ConfigError: anything else.
    """
    number = _integer(value)
    if number is None:
        raise ConfigError(f"Parameter '{name}' expects {'integer' if isinstance(value, str) else 'uint64'}")
    if not 0 <= number < 1 << 32:
        raise ConfigError(f"Parameter '{name}' expects uint32_t")
    return number


def _integer(value: object) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    matched = re.match(_NUMBER, value) if isinstance(value, str) else None
    if matched is None:
        return None
    digits = matched[2]
    base = 16 if digits[:2] in ("0x", "0X") else 8 if digits.startswith("0") else 10
    return int(digits, base) * (-1 if matched[1] == "-" else 1)


def to_size(name: str, value: object) -> int:
    """Bytes, with a suffix k, M, G, T, P or E for powers of 1024.

    Raises:
        ConfigError: anything else, or too large.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    matched = re.match(_SIZE, value) if isinstance(value, str) else None
    if matched is None:
        raise ConfigError(SIZE_TEXT.format(name=name))
    shift = _SIZE_SHIFT[matched[3].lower()]
    if matched[2][:2] in ("0x", "0X"):
        size = int(matched[2], 16) << shift
    elif "." in matched[2]:
        size = int(float(matched[2]) * (1 << shift))
    else:
        size = int(matched[2]) << shift
    if matched[1] or size >= 1 << 64:
        raise ConfigError(f"Value '{value}' is out of range for parameter '{name}'")
    return size


def to_string(name: str, value: object) -> str:
    """A string; a JSON value must be one.

    Raises:
        ConfigError: anything else.
    """
    if not isinstance(value, str):
        raise ConfigError(f"Invalid parameter type for '{name}', expected: string")
    if "\0" in value:
        raise ConfigError(f"Parameter '{name}' must not contain a NUL byte")
    return value
