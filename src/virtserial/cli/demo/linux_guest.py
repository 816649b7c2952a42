"""The guest's end of the demonstration in a virtual machine: QEMU with a Linux guest, attached to our two devices."""

from __future__ import annotations

import inspect
import os
import signal
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from virtserial.cli.demo import guest_script
from virtserial.cli.demo.end import report
from virtserial.cli.demo.plan import Plan
from virtserial.errors import VirtserialError
from virtserial.rig import Guest, GuestError
from virtserial.rig.__main__ import vfio_user_argument

if TYPE_CHECKING:
    from virtserial.rig.channel import Job

SILENCE_SECONDS = 120.0
COMPLAINT_SECONDS = 5.0


def pass_on_input(job: Job) -> None:
    """Give what the conductor says to the script in the guest."""
    while line := sys.stdin.buffer.readline():
        job.send(line)


def main() -> int:
    """Run one demonstration's guest end; the plan is the only argument."""
    # By an exception, so that QEMU is ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    plan = Plan.from_json(sys.argv[1])
    devices = [
        word for number in plan.controllers for word in ("-device", vfio_user_argument(plan.device_socket(number)))
    ]
    # Every file is in the guest's memory, and the guest's driver has buffers of its own.
    memory_mib = 256 + 2 * len(plan.ports) * (plan.size >> 20)
    try:
        with Guest(devices, memory_mib=memory_mib, smp=2) as guest:
            linux = f"Linux {guest.check('uname -r')} in QEMU (TCG), process {guest.pid}"
            report("say", line=f"{linux}, booted in {guest.boot_seconds:.1f} s")
            job = guest.start_python(inspect.getsource(guest_script))
            job.send(plan.to_json().encode() + b"\n")
            threading.Thread(target=pass_on_input, args=(job,), daemon=True).start()
            while job.status is None:
                line = job.expect(b"\n", SILENCE_SECONDS)
                if not line.startswith(b"{"):
                    # No report: the script or one of its programs complains, and more may follow.
                    with suppress(GuestError):
                        line += job.wait(COMPLAINT_SECONDS).output
                    raise GuestError(f"the guest's script: {line.decode(errors='replace').strip()}")
                sys.stdout.buffer.write(line)
                sys.stdout.flush()
    except (VirtserialError, OSError) as error:
        report("failed", reason=str(error))
        return 1
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    # The thread that reads standard input would be waited for otherwise.
    os._exit(status)
