"""What tests run inside the guest, as sources for a GuestSession."""

from __future__ import annotations

from virtserial.conformance.driver_contract import PORT_HELPERS

__all__ = ["PORT_HELPERS", "TRANSFER"]

# busybox's head and tee work in small pieces; cat, dd and sha1sum do not.
TRANSFER = """
exec 3<>{port}
head -c {block_bytes} /dev/urandom >/tmp/{name}.block
sent() {{ for n in $(seq {repeat}); do cat /tmp/{name}.block; done; }}
sent >&3 & writer=$!
dd bs=64k count={expected_blocks} iflag=fullblock <&3 2>/tmp/{name}.dd | sha1sum >/tmp/{name}.received
wait $writer || {{ echo "the writer failed"; exit 1; }}
grep -q '^{expected_blocks}+0 records out' /tmp/{name}.dd || {{ cat /tmp/{name}.dd; exit 1; }}
sent | sha1sum | cut -c1-40
cut -c1-40 /tmp/{name}.received
rm /tmp/{name}.*
"""
