"""A real systemd for tests: `systemd --user`, in a mount namespace and a control group of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

SYSTEMD = "/usr/lib/systemd/systemd"
GROUPS = [Path("/sys/fs/cgroup/systemd"), Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")]
"""Where systemd's hierarchy may be mounted: of version 1, of version 2 beside it, of version 2 alone."""
PROGRAM = """
mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system || exit 77
for group in $GROUPS; do echo $$ >$group/cgroup.procs || exit 77; done
exec "$@"
"""
"""The manager starts only where something says that systemd has booted the machine."""


def why_not():
    """Why there can be no manager here, or None.  In CI a machine without systemd is no excuse."""
    if os.geteuid() != 0:
        return "a mount namespace takes root"
    if not os.environ.get("CI") and not (os.path.exists(SYSTEMD) and shutil.which("systemctl")):
        return "no systemd here"
    return None


class SystemdManager:
    """
    Args:
        folder: for its files; where units are put.
    """

    def __init__(self, folder):
        self._folder = folder / "systemd"
        self.units = self._folder / "config" / "systemd" / "user"
        self.units.mkdir(parents=True)
        runtime = self._folder / "run"
        runtime.mkdir(mode=0o700)
        self._environment = {
            **os.environ, "XDG_RUNTIME_DIR": str(runtime), "XDG_CONFIG_HOME": str(self._folder / "config"),
            "SYSTEMD_LOG_TARGET": "console",
        }  # fmt: skip
        self._group = f"virtserial-test-{os.getpid()}-{time.monotonic_ns()}"
        groups = [parent / self._group for parent in GROUPS if (parent / "cgroup.procs").exists()]
        for group in groups:
            group.mkdir()
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                ["unshare", "--mount", "sh", "-c", PROGRAM, "sh", SYSTEMD, "--user"],
                env={**self._environment, "GROUPS": " ".join(map(str, groups))},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0,
            )  # fmt: skip
        limit = time.monotonic() + 60
        try:
            while self("show", "--property=Version", check=False).returncode:
                assert self._process.poll() is None, f"systemd has ended: {self.log}"
                assert time.monotonic() < limit, f"systemd does not answer: {self.log}"
                time.sleep(0.05)
        except BaseException:
            self.close()
            raise

    @property
    def log(self):
        """What it has written."""
        return (self._folder / "log").read_text(errors="replace")

    def command(self, *words):
        """systemctl's words, for this manager."""
        return ["systemctl", "--user", "--no-pager", *words]

    def start(self, *words):
        """Run systemctl in the background."""
        return subprocess.Popen(self.command(*words), env=self._environment, stdout=subprocess.DEVNULL)

    def __call__(self, *words, check=True):
        """Run systemctl; returns the finished process."""
        done = subprocess.run(self.command(*words), env=self._environment, capture_output=True, text=True, timeout=60)
        assert not check or done.returncode == 0, f"{words}: {done.stderr} {self.log}"
        return done

    def property(self, unit, name):
        """What it says of a unit."""
        return self("show", f"--property={name}", "--value", unit).stdout.strip()

    def close(self):
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        # It has made groups in other hierarchies too, and leaves the one that it was in.
        for group in (*Path("/sys/fs/cgroup").glob(f"*/{self._group}"), Path("/sys/fs/cgroup", self._group)):
            for inner, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(inner)
