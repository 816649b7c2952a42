"""A fixed load on one processor, as a neighbour that computes all the time."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from virtserial.rig.guest import ENDS_WITH_ITS_PARENT

if TYPE_CHECKING:
    from collections.abc import Iterator

SPIN = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"


@contextmanager
def one_busy_core() -> Iterator[int]:
    """Keep the last processor busy with a process that never sleeps; yields its pid."""
    core = max(os.sched_getaffinity(0))
    process = subprocess.Popen([*ENDS_WITH_ITS_PARENT, sys.executable, "-c", SPIN, str(core)])
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()
