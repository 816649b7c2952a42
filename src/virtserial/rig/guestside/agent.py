"""The agent inside the guest: process 1, runs commands and Python scripts for the host over a serial line.

Frames both ways: payload length (u32), job (u32), kind (u8), payload; all little-endian, the line in raw mode, so
any byte passes.  One resident interpreter forks for each script: a fresh one takes a second to start under TCG.
The agent also does udev's work for ports: /dev/virtio-ports/NAME -> ../vportNpM, followed through hot-plug.

Host side of the same protocol: virtserial.rig.channel.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import struct
import sys
import termios
import traceback
from typing import NoReturn

HEADER = struct.Struct("<IIB")
# Host to guest.
RUN = 1  # payload: a shell command
PYTHON = 2  # payload: the source of a script
INPUT = 3  # payload: bytes for the job's standard input; empty: end of file
SIGNAL = 4  # payload: one byte, the signal for the job's process group
WRITE = 5  # payload: mode (u32), append (u8), length of path (u16), path, data; answered by EXIT
READ = 6  # payload: path; answered by OUTPUT frames and EXIT
# Guest to host.
HELLO = 16  # payload: the kernel's boot id
OUTPUT = 17  # payload: bytes of standard output and error
EXIT = 18  # payload: status (i32), negative for a signal, as subprocess has it

WRITE_HEADER = struct.Struct("<IBH")
STATUS = struct.Struct("<i")
SYNC = b"\0virtserial rig\n\0"  # before HELLO: a reboot may have cut a frame in the middle
LINE = "/dev/ttyS1"
CHUNK = 32768
PORTS = "/sys/class/virtio-ports"
LINKS = "/dev/virtio-ports"
UEVENT_KERNEL_GROUP = 1


def open_raw_line(path: str) -> int:
    """Opens a terminal without echo, translation, signals or flow control."""
    line = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    settings = termios.tcgetattr(line)
    settings[0] = settings[1] = settings[3] = 0
    settings[2] = termios.CS8 | termios.CREAD | termios.CLOCAL
    settings[4] = settings[5] = termios.B115200
    settings[6][termios.VMIN], settings[6][termios.VTIME] = 1, 0
    termios.tcsetattr(line, termios.TCSANOW, settings)
    return line


class Job:
    """One child process: its output pipe is read here, its input pipe is fed from INPUT frames."""

    def __init__(self, number: int, kind: int, payload: bytes) -> None:
        self.number = number
        child_input, self.input = os.pipe2(os.O_CLOEXEC)
        self.output, child_output = os.pipe2(os.O_CLOEXEC)
        fcntl.fcntl(self.output, fcntl.F_SETPIPE_SZ, 262144)
        self.pid = os.fork()
        if self.pid == 0:
            _become_child(kind, payload, child_input, child_output)
        os.close(child_input)
        os.close(child_output)
        os.set_blocking(self.output, False)

    def close_input(self) -> None:
        """Gives the child an end of file; a second call does nothing."""
        if self.input >= 0:
            os.close(self.input)
            self.input = -1


def _become_child(kind: int, payload: bytes, child_input: int, child_output: int) -> NoReturn:
    status = 1
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.dup2(child_input, 0)
        os.dup2(child_output, 1)
        os.dup2(child_output, 2)
        if kind == RUN:
            os.execv("/bin/sh", (b"sh", b"-c", payload))
        os.closerange(3, 64)
        sys.stdin = os.fdopen(0, closefd=False)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        status = _run_script(payload.decode())
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    os._exit(status)


def _run_script(source: str) -> int:
    try:
        exec(compile(source, "<script>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        sys.stderr.write(f"{end.code}\n")
        return 1
    return 0


class Agent:
    """The loop over the line, the jobs' output, the ends of children and the kernel's uevents."""

    def __init__(self) -> None:
        self.line = open_raw_line(LINE)
        self.received = bytearray()
        self.jobs: dict[int, Job] = {}
        self.by_output: dict[int, Job] = {}
        self.poll = select.poll()
        self.ended, wakeup = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakeup)
        self.uevents = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 15)
        self.uevents.setsockopt(socket.SOL_SOCKET, 33, 4 << 20)  # SO_RCVBUFFORCE: 510 ports come at once
        self.uevents.bind((0, UEVENT_KERNEL_GROUP))
        for descriptor in (self.line, self.ended, self.uevents.fileno()):
            self.poll.register(descriptor, select.POLLIN)

    def run(self) -> NoReturn:
        """Serves for ever."""
        self.link_ports()
        with open("/proc/sys/kernel/random/boot_id", "rb") as boot_id:
            identity = boot_id.read().strip()
        os.write(self.line, SYNC)
        self.send(0, HELLO, identity)
        while True:
            for descriptor, _ in self.poll.poll():
                if descriptor == self.line:
                    self.receive()
                elif descriptor == self.ended:
                    self.reap()
                elif descriptor == self.uevents.fileno():
                    self.follow_ports()
                elif descriptor in self.by_output:
                    self.forward(self.by_output[descriptor])

    def send(self, job: int, kind: int, payload: bytes) -> None:
        """Writes one frame, waiting until the line has taken it."""
        data = memoryview(HEADER.pack(len(payload), job, kind) + payload)
        while data:
            data = data[os.write(self.line, data) :]

    def receive(self) -> None:
        """Reads the line and handles every whole frame."""
        self.received += os.read(self.line, 65536)
        while len(self.received) >= HEADER.size:
            length, job, kind = HEADER.unpack_from(self.received)
            end = HEADER.size + length
            if len(self.received) < end:
                return
            payload = bytes(self.received[HEADER.size : end])
            del self.received[:end]
            self.handle(job, kind, payload)

    def handle(self, number: int, kind: int, payload: bytes) -> None:
        """Does what one frame asks for."""
        if kind in (RUN, PYTHON):
            job = Job(number, kind, payload)
            self.jobs[number] = self.by_output[job.output] = job
            self.poll.register(job.output, select.POLLIN)
        elif kind in (WRITE, READ):
            try:
                status = self.write_file(payload) if kind == WRITE else self.read_file(number, payload)
            except OSError as error:
                self.send(number, OUTPUT, str(error).encode())
                status = error.errno or 1
            self.send(number, EXIT, STATUS.pack(status))
        elif number in self.jobs:
            job = self.jobs[number]
            try:
                if kind == SIGNAL:
                    os.killpg(job.pid, payload[0])
                elif payload:
                    os.write(job.input, payload)
                else:
                    job.close_input()
            except OSError:
                pass  # the job ended or closed its input while the frame was on its way

    def write_file(self, payload: bytes) -> int:
        """WRITE: a file's content, whole or one more piece."""
        mode, append, path_length = WRITE_HEADER.unpack_from(payload)
        path = payload[WRITE_HEADER.size :][:path_length]
        os.makedirs(os.path.dirname(path) or b"/", exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if append else os.O_TRUNC)
        with open(os.open(path, flags, mode), "wb") as file:
            file.write(payload[WRITE_HEADER.size + path_length :])
        return 0

    def read_file(self, number: int, path: bytes) -> int:
        """READ: a file's content as OUTPUT frames."""
        with open(path, "rb") as file:
            while data := file.read(CHUNK):
                self.send(number, OUTPUT, data)
        return 0

    def forward(self, job: Job) -> bool:
        """Sends on what a job has written; False when there is nothing more now."""
        try:
            data = os.read(job.output, CHUNK)
        except BlockingIOError:
            return False
        if data:
            self.send(job.number, OUTPUT, data)
        else:
            self.poll.unregister(job.output)
            del self.by_output[job.output]
        return bool(data)

    def reap(self) -> None:
        """Takes the status of ended children; process 1 also inherits orphans, which nobody asks about."""
        os.read(self.ended, 4096)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for job in [job for job in self.jobs.values() if job.pid == pid]:
                self.finish(job, os.waitstatus_to_exitcode(status))

    def finish(self, job: Job, status: int) -> None:
        """Reports a job's end after its last output; what its own children write later is not waited for."""
        while job.output in self.by_output and self.forward(job):
            pass
        if self.by_output.pop(job.output, None):
            self.poll.unregister(job.output)
        os.close(job.output)
        job.close_input()
        del self.jobs[job.number]
        self.send(job.number, EXIT, STATUS.pack(status))

    def follow_ports(self) -> None:
        """Reads the kernel's uevents; one of a port makes or removes its link."""
        ports = set()
        try:
            while True:
                fields = self.uevents.recv(16384).split(b"\0")
                if b"SUBSYSTEM=virtio-ports" in fields:
                    ports.add(os.path.basename(fields[0].decode()))
        except BlockingIOError:
            pass
        except OSError:  # ENOBUFS: uevents were lost
            self.link_ports()
        for port in ports:
            self.link_port(port)

    def link_ports(self) -> None:
        """Looks at every port there is and every link."""
        try:
            present = os.listdir(PORTS)
        except FileNotFoundError:
            present = []
        stale = [os.path.basename(os.readlink(f"{LINKS}/{name}")) for name in self.links()]
        for port in {*present, *stale}:
            self.link_port(port)

    @staticmethod
    def links() -> list[str]:
        """The names in the folder of links, which a user-space driver removes when it ends."""
        os.makedirs(LINKS, exist_ok=True)
        return os.listdir(LINKS)

    def link_port(self, port: str) -> None:
        """Makes the link of a named port, and removes those of one that is gone."""
        try:
            with open(f"{PORTS}/{port}/name") as file:
                name = file.read().strip().replace("/", "_")
        except OSError:
            name = ""
        target = f"../{port}"
        for other in self.links():
            if other != name and os.readlink(f"{LINKS}/{other}") == target:
                os.unlink(f"{LINKS}/{other}")
        if name:
            new = f"{LINKS}/.new"
            os.symlink(target, new)
            os.rename(new, f"{LINKS}/{name}")


if __name__ == "__main__":
    Agent().run()
