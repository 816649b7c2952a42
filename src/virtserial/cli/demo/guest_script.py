"""The guest's end of the demonstration in a real Linux guest: what is sent into the guest and run there.

It stands alone: the guest has Python, the stock virtio_console driver and no part of this package.  The conductor's
plan comes as a line of JSON on standard input.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time

CHUNK = 65536


def say(event: str, **fields: object) -> None:
    """Report a line of JSON."""
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


class Transfer:
    """One port's two files, moved by the guest's own programs: one opener, two users of its descriptor."""

    def __init__(self, name: str, folder: str, size: int) -> None:
        self.name = name
        self.out, self.into = f"{folder}/{name}.out", f"{folder}/{name}.in"
        self.size = size
        self.seconds = 0.0
        self.fd = os.open(f"/dev/virtio-ports/{name}", os.O_RDWR)
        self.started = 0.0

    def start(self) -> None:
        """Begin with both."""
        dd = ["dd", f"bs={CHUNK}", "iflag=fullblock", f"count={self.size // CHUNK}"]
        with open(self.into, "wb") as file:
            self.receiver = subprocess.Popen(dd, stdin=self.fd, stdout=file, stderr=subprocess.DEVNULL)
        with open(self.out, "rb") as file:
            self.sender = subprocess.Popen(["cat"], stdin=file, stdout=self.fd)
        self.started = time.monotonic()

    @property
    def received(self) -> int:
        """Bytes received so far."""
        return os.path.getsize(self.into)

    def moving(self) -> bool:
        """Whether one of the two is still on its way."""
        if self.receiver.poll() is not None and not self.seconds:
            self.seconds = time.monotonic() - self.started
        return self.receiver.poll() is None or self.sender.poll() is None


def wait_for(path: str, flags: int = os.O_PATH) -> int:
    """Wait until a device can be opened, and open it."""
    limit = time.monotonic() + 20
    while True:
        try:
            return os.open(path, flags)
        except OSError as error:
            # Linux makes the nodes of all hvc consoles with the first: those of others that are to come give ENODEV.
            if error.errno not in (errno.ENOENT, errno.ENODEV) or time.monotonic() > limit:
                raise
        time.sleep(0.05)


def main() -> None:
    """Run the guest's end."""
    plan = json.loads(sys.stdin.readline())
    folder, size = plan["guest_folder"], plan["size"]
    os.makedirs(folder, exist_ok=True)
    transfers = []
    for _, name, _ in plan["ports"]:
        with open(f"{folder}/{name}.out", "wb") as file:
            for _ in range(0, size, 1 << 20):
                file.write(os.urandom(1 << 20))
        os.close(wait_for(f"/dev/virtio-ports/{name}"))
        transfers.append(Transfer(name, folder, size))
    for _, name, _ in plan["consoles"]:
        # It stays open here: the shell opens it again.
        wait_for(f"/dev/{name}", os.O_RDWR | os.O_NOCTTY)
        # A session leader without a terminal gets the first one it opens as its controlling terminal.
        subprocess.Popen(
            ["/bin/sh", "-c", f"exec /bin/sh -i </dev/{name} >/dev/{name} 2>&1"],
            start_new_session=True,
            env={"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), "TERM": "dumb", "PS1": "guest# "},
        )
    say("ready")
    sys.stdin.readline()
    for transfer in transfers:
        transfer.start()
    while True:
        moving = [transfer.name for transfer in transfers if transfer.moving()]
        say("progress", received={transfer.name: transfer.received for transfer in transfers})
        if not moving:
            break
        time.sleep(0.1)
    say("moved", seconds={transfer.name: transfer.seconds for transfer in transfers})
    for transfer in transfers:
        for direction, path in (("out", transfer.out), ("in", transfer.into)):
            sha1 = subprocess.run(["sha1sum", path], check=True, capture_output=True, text=True).stdout.split()[0]
            say("digest", port=transfer.name, direction=direction, sha1=sha1, size=os.path.getsize(path))
    sys.stdin.readline()


if __name__ == "__main__":
    main()
