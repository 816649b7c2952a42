"""The process of `virtserial serve` that a program starts beside itself."""

from __future__ import annotations

import os
import select
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from virtserial.dropin.run_folder import make_run_folder
from virtserial.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

READY_TIME: Final = 30.0
"""Seconds until every socket must be ready; a loaded machine is slow."""
END_TIME: Final = 10.0
_SOURCE: Final = str(Path(__file__).parents[2])


class ServeProcess:
    """A `virtserial serve` with a folder of its own; `start` it, `close` it.

    Attributes:
        folder: where its sockets and its log are; removed by `close`, and by the next one if this program is killed.
        qemu_arguments: words for QEMU's command line, a -device for each controller.

    Raises:
        ConfigError: the folder cannot be made.
    """

    def __init__(self) -> None:
        # A socket's path has at most 107 bytes.
        self.folder = Path(tempfile.gettempdir(), f"virtserial-{os.urandom(6).hex()}")
        self._held = make_run_folder(str(self.folder))
        self.qemu_arguments: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process's id; 0 before it is started."""
        return 0 if self._process is None else self._process.pid

    @property
    def log(self) -> str:
        """What it has written to standard error."""
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self, options: Sequence[str]) -> None:
        """Start it, and return when every socket is ready.

        Raises:
            ConfigError: it refuses the options, in its own words, or is not ready in READY_TIME.
        """
        ready, ready_at_child = os.pipe()
        path = os.pathsep.join(filter(None, (_SOURCE, os.environ.get("PYTHONPATH"))))
        try:
            with (self.folder / "log").open("wb") as log, (self.folder / "announced").open("wb") as announced:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "virtserial", "serve", "--exit-with-parent",
                     "--ready-fd", str(ready_at_child), *options],
                    env={**os.environ, "PYTHONPATH": path}, pass_fds=(ready_at_child,),
                    stdin=subprocess.DEVNULL, stdout=announced, stderr=log, start_new_session=True,
                )  # fmt: skip
        finally:
            os.close(ready_at_child)
        try:
            in_time = bool(select.select([ready], [], [], READY_TIME)[0])
        finally:
            os.close(ready)
        self.qemu_arguments = shlex.split((self.folder / "announced").read_text())
        if not in_time:
            raise ConfigError(f"virtserial serve is not ready in {READY_TIME:g} s: {self.log.strip()}")
        if not self.qemu_arguments:
            self._process.wait()
            raise ConfigError(self.log.strip().removeprefix("virtserial: "))

    def close(self) -> None:
        """End the process and remove the folder."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(END_TIME)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._held >= 0:
            os.close(self._held)
            self._held = -1
