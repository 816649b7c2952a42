"""A QEMU and a keeper whose monitors are joined, as the drop-in launches them."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

from support.guests.host_device import _end, vfio_user
from support.places import ENVIRONMENT

from virtserial.rig.guest import ENDS_WITH_ITS_PARENT
from virtserial.rig.qemu import find_qemu

KEEPER = Path(__file__).with_name("joined_keeper.py")
READY_TIMEOUT = 90
MONITORS = ("-qmp", "-qmp-pretty", "-monitor", "-mon")
NO_GUEST = (
    *("-machine", "q35,memory-backend=memory", "-accel", "tcg", "-m", "64", "-nodefaults", "-no-user-config"),
    *("-object", "memory-backend-memfd,id=memory,size=64M,share=on", "-display", "none", "-S"),
    *("-device", "pcie-root-port,id=rp1,slot=1,chassis=1", "-device", "pcie-root-port,id=rp2,slot=2,chassis=2"),
)


@contextmanager
def keeper(options, fronts=()):
    """A keeper of these options: gives QEMU's words, the descriptors it inherits, and the folder of sockets.

    Args:
        options: pairs of words, as `virtserial serve` takes them; controllers get a socket each.
        fronts: names of streams ("front/CHARDEV/K") that QEMU's own users of our chardevs get; they are
            chardevs of QEMU called "front0", "front1" and so on.
    """
    with tempfile.TemporaryDirectory(prefix="vs-join-") as folder:
        served, qemu_words, names, monitors = [], [], ["control"], 0
        for option, value in zip(options[::2], options[1::2], strict=True):
            if option == "-device" and value.partition(",")[0] in ("virtio-serial", "virtio-serial-pci"):
                path = f"{folder}/controller{len(qemu_words)}"
                device = json.loads(vfio_user(path))
                if "id=" in value:
                    device["id"] = value.partition("id=")[2].partition(",")[0]
                qemu_words += ["-device", json.dumps(device)]
                value = f"{value},socket={path}"
            elif option in MONITORS:
                names.append(f"monitor/{monitors}")
                monitors += 1
            served += [option, value]
        names += fronts
        pairs = {name: socket.socketpair() for name in names}
        for name, (_, theirs) in pairs.items():
            fd = theirs.fileno()
            if name.startswith("front/"):
                qemu_words = ["-chardev", f"socket,id=front{list(fronts).index(name)},fd={fd}", *qemu_words]
                continue
            label = "virtserial-" + name.replace("/", "-")
            line = ("-chardev", f"socket,id={label},fd={fd}", "-qmp", f"chardev:{label}")
            qemu_words = [*line, *qemu_words]
        ready, ready_at_child = os.pipe()
        streams = {name: ours.fileno() for name, (ours, _) in pairs.items()}
        with open(f"{folder}/log", "wb") as log:
            process = subprocess.Popen(
                [*ENDS_WITH_ITS_PARENT, sys.executable, str(KEEPER), json.dumps(streams), folder, str(ready_at_child),
                 *served],
                env=ENVIRONMENT,
                pass_fds=[ready_at_child, *streams.values()],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        os.close(ready_at_child)
        for ours, _ in pairs.values():
            ours.close()
        try:
            assert select.select([ready], [], [], READY_TIMEOUT)[0], "the keeper is not ready"
            assert process.poll() is None, "the keeper has ended"
            yield Joined(process, folder, qemu_words, [theirs for _, theirs in pairs.values()])
        except BaseException as error:
            error.add_note(f"the keeper said:\n{Path(folder, 'log').read_text()[-4000:]}")
            raise
        finally:
            os.close(ready)
            for _, theirs in pairs.values():
                theirs.close()
            _end(process)


class Joined:
    """A keeper that waits for its QEMU."""

    def __init__(self, process, folder, qemu_words, ends):
        self.process = process
        self.folder = folder
        self.qemu_words = qemu_words
        self._ends = ends

    @property
    def pass_fds(self):
        """What QEMU has to inherit."""
        return [end.fileno() for end in self._ends]

    def handed_over(self):
        """QEMU has its ends: so that they end with it, they are closed here."""
        for end in self._ends:
            end.close()

    @property
    def log(self):
        """What the keeper has said."""
        return Path(self.folder, "log").read_text()


@contextmanager
def qemu_without_a_guest(joined, *words):
    """A QEMU that has started and runs no guest."""
    program = find_qemu()
    with open(f"{joined.folder}/qemu-log", "w+b") as output:
        process = subprocess.Popen(
            [*ENDS_WITH_ITS_PARENT, *program.command, *NO_GUEST, *words, *joined.qemu_words],
            env={**os.environ, **program.environment}, pass_fds=joined.pass_fds,
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
    joined.handed_over()
    try:
        yield process
    except BaseException as error:
        error.add_note(f"QEMU (status {process.poll()}): {Path(joined.folder, 'qemu-log').read_text()}")
        raise
    finally:
        process.kill()
        process.wait()
