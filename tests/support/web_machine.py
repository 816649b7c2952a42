"""Devices with the embedded guest, shells in it, and `virtserial web` as a process: what browsers look at in tests."""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import sys
import termios
import threading

from support.client_machine import running
from support.places import ENVIRONMENT
from support.waiting import wait_until

PROMPT = "guest> "


@contextlib.contextmanager
def machine(folder, name, ports=(), *, consoles=1, options=""):
    """A device process called `name`, and its guest, whose ports are terminals in FOLDER/NAME; yields that folder."""
    words = ["--name", name, "--allow-path", str(folder), "-qmp", f"unix:{folder}/{name}.qmp,server=on,wait=off"]
    sockets = []
    everything = [*(("virtconsole", f"console{number}") for number in range(consoles)),
                  *(("virtserialport", port) for port in ports)]  # fmt: skip
    for number, (driver, port) in enumerate(everything):
        if number % 30 == 0:
            sockets.append(f"{folder}/{name}.{len(sockets)}")
            words += ["-device", f"virtio-serial,id=ser{len(sockets)},max_ports=31,socket={sockets[-1]}"]
        called = f"id={port}" if driver == "virtconsole" else f"name={port}"
        words += ["-chardev", f"socket,id=c{number},path={folder}/{name}.c{number},server=on,wait=off{options}"]
        words += ["-device", f"{driver},bus=ser{len(sockets)}.0,{called},chardev=c{number}"]
    guest = folder / name
    with (
        running("serve", *words) as device,
        running("guest", "attach", *sockets, "--as", "pty", "--run-dir", str(guest)),
    ):
        names = [*(f"hvc{number}" for number in range(consoles)), *(f"virtio-ports/{port}" for port in ports)]
        wait_until(lambda: all((guest / each).exists() for each in names))
        yield guest, device


@contextlib.contextmanager
def shell(terminal):
    """A shell on a terminal of the guest."""
    with contextlib.ExitStack() as ending:
        with open(terminal, "r+b", buffering=0, opener=_open_terminal) as tty:
            process = subprocess.Popen(
                ["setsid", "-c", "sh", "-c", "stty sane; exec sh -i"], stdin=tty, stdout=tty, stderr=tty,
                env={**os.environ, "PS1": PROMPT, "ENV": "", "TERM": "xterm-256color"},
            )  # fmt: skip
            ending.callback(process.wait)
            ending.callback(process.kill)
            # A line that is typed before has no end for a terminal that reads lines from then on.
            wait_until(lambda: termios.tcgetattr(tty)[3] & termios.ICANON)
        yield process


def _open_terminal(path, flags):
    return os.open(path, flags | os.O_NOCTTY)


@contextlib.contextmanager
def echoes(*terminals):
    """Guests that say what they are told, in brackets."""
    fds = [os.open(terminal, os.O_RDWR | os.O_NOCTTY) for terminal in terminals]
    stop, stopping = os.pipe()

    def serve():
        with selectors.DefaultSelector() as selector:
            for fd in [*fds, stop]:
                selector.register(fd, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fd == stop:
                        return
                    with contextlib.suppress(OSError):
                        os.write(key.fd, b"[" + os.read(key.fd, 4096) + b"]")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        os.close(stopping)
        thread.join()
        for fd in [*fds, stop]:
            os.close(fd)


@contextlib.contextmanager
def web(*words):
    """`virtserial web`; yields its address and its process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "virtserial", "web", *words], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process.stdout.readline().removeprefix("ready: ").strip(), process
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()
