"""The name of a virtual machine, as QEMU's -name has it."""

from __future__ import annotations

from virtserial.errors import ConfigError
from virtserial.options import keyval


def machine_name(text: str) -> str:
    """Return the name in `NAME` or `[guest=]NAME,debug-threads=on,...`; "" if there is none, or QEMU will refuse it."""
    try:
        return str(keyval.parse_options(text, "guest").get("guest", ""))
    except ConfigError:
        return ""
