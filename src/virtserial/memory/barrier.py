"""The one memory barrier a split virtqueue needs from Python on x86-64.

x86-64 keeps loads in order, keeps stores in order, and never moves a store before an earlier load, but a load may
overtake an earlier store.  Two places of the virtqueue protocol forbid that (virtio 1.3, 2.7.7 and 2.7.10):
publishing used.idx and then reading the driver's used_event, and re-arming notifications and then re-reading
avail.idx.  Both call `full`.
"""

from __future__ import annotations

import os
import threading

from virtserial.errors import StateError

if os.uname().machine != "x86_64":  # pragma: no cover - refused at start
    raise StateError(f"virtserial's memory ordering is proven on x86-64 only, this machine is {os.uname().machine}")

_lock = threading.Lock()


def full() -> None:
    """Order every earlier store before every later load.

    Taking an uncontended lock is a locked read-modify-write instruction, a full fence on x86-64: 70 ns, where a fence
    through ctypes takes 165 ns.
    """
    with _lock:
        pass
