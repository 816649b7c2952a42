"""Wrong options of `virtserial serve`: QEMU's text and a way out, exit status 2, and nothing is left."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from support.programs import run

CONTROLLER = "-device virtio-serial,id=ser0,socket={folder}/ser0.sock"
LISTENING = "-chardev socket,id=c0,path={folder}/c0,server=on,wait=off"

WRONG = {
    "unknown option": ("-bogus", "-bogus: invalid option"),
    "word that is no option": ("virtio-serial", "virtio-serial: invalid option"),
    "option without its argument": ("-device", "-device: requires an argument"),
    "no controller": ("-chardev null,id=c0", "no controller: say -device virtio-serial,socket=PATH"),
    "max_ports=0": (f"{CONTROLLER},max_ports=0", "Maximum number of serial ports not specified"),
    "max_ports=512": (f"{CONTROLLER},max_ports=512", "maximum ports supported: 511"),
    "nr too big": (
        f"{CONTROLLER},max_ports=4 -device virtserialport,nr=4",
        "virtio-serial-bus: Out-of-range port id specified, max. allowed: 3",
    ),
    "full": (
        f"{CONTROLLER},max_ports=2 -device virtserialport -device virtserialport",
        "virtio-serial-bus: Out-of-range port id specified, max. allowed: 1",
    ),
    "nr taken": (
        f"{CONTROLLER} -device virtserialport,nr=2 -device virtserialport,nr=2",
        "virtio-serial-bus: A port already exists at id 2",
    ),
    "name taken": (
        f"{CONTROLLER} -device virtserialport,name=x -device virtserialport,name=x",
        "virtio-serial-bus: A port already exists by name x",
    ),
    "nr=0": (
        f"{CONTROLLER} -device virtserialport,nr=0",
        "Port number 0 on virtio-serial devices reserved for virtconsole devices for backward compatibility.",
    ),
    "port without a controller": (
        "-device virtserialport",
        "No 'virtio-serial-bus' bus found for device 'virtserialport'",
    ),
    "bad bus": (f"{CONTROLLER} -device virtserialport,bus=foo.0", "Bus 'foo.0' not found"),
    "unknown chardev": (
        f"{CONTROLLER} -device virtserialport,chardev=zz",
        "Property 'virtserialport.chardev' can't find value 'zz'",
    ),
    "chardev taken": (
        f"{CONTROLLER} -chardev null,id=z -device virtserialport,chardev=z -device virtserialport,chardev=z",
        "Property 'virtserialport.chardev' can't take value 'z': chardev 'z' is already in use",
    ),
    "device id twice": (
        f"{CONTROLLER} -device virtserialport,id=p1 -device virtserialport,id=p1",
        "Duplicate device ID 'p1'",
    ),
    "chardev id twice": (f"{CONTROLLER} -chardev null,id=a -chardev null,id=a", "Duplicate ID 'a' for chardev"),
    "unknown chardev type": (f"{CONTROLLER} -chardev foo,id=a", "'foo' is not a valid char driver name"),
    "unknown property": (
        f"{CONTROLLER} -device virtserialport,colour=red",
        "Property 'virtserialport.colour' not found",
    ),
    "descriptor that is not open": (f"{CONTROLLER} --ready-fd 900", "--ready-fd 900: not an open descriptor"),
    "descriptor that is no number": (f"{CONTROLLER} --ready-fd x", "--ready-fd x: not an open descriptor"),
    "descriptor beyond all": (f"{CONTROLLER} --ready-fd {1 << 70}", f"--ready-fd {1 << 70}: not an open descriptor"),
    # What only shows when things are opened, after others were.
    "file that cannot be made": (
        f"{CONTROLLER} {LISTENING} -chardev file,id=f,path={{folder}}/none/file",
        "Could not open '{folder}/none/file': No such file or directory",
    ),
    "socket in no folder": (
        f"{CONTROLLER} {LISTENING} -device virtio-serial,id=ser1,socket={{folder}}/none/ser1.sock",
        "Failed to bind socket to {folder}/none/ser1.sock: No such file or directory",
    ),
    "socket that another controller has": (
        f"{CONTROLLER} -device virtio-serial,id=ser1,socket={{folder}}/ser0.sock",
        "socket {folder}/ser0.sock: another controller listens there",
    ),
    "the same socket by another name": (
        f"{CONTROLLER} -device virtio-serial,id=ser1,socket={{folder}}/./ser0.sock",
        "Failed to bind socket to {folder}/./ser0.sock: it is in use by a live server",
    ),
    "host's socket in use": (
        f"{CONTROLLER} {LISTENING} -chardev socket,id=c1,path={{folder}}/live,server=on,wait=off",
        "Failed to bind socket to {folder}/live: it is in use by a live server",
    ),
    "socket's path too long": (
        f"-device virtio-serial,socket={{folder}}/{'x' * 108}",
        f"Failed to bind socket to {{folder}}/{'x' * 108}: ",
    ),
}


WAYS_OUT = {
    "socket in no folder": "virtserial: create the folder first: mkdir -p {folder}/none\n",
    "the same socket by another name": "virtserial: is another server running?",
    "host's socket in use": "virtserial: is another server running?",
    "socket's path too long": "virtserial: a socket's path has at most 107 bytes",
}
"""Second lines."""

OPENED = {*[*WRONG][[*WRONG].index("file that cannot be made") :]} - {"socket that another controller has"}
"""These show when things are opened: exit status 1, not 2."""


def descendants():
    """Processes that run `virtserial serve` as children of nobody or of this one."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"virtserial" in words and b"serve" in words:
            found.add((entry.name, tuple(words)))
    return found


@pytest.mark.parametrize("case", WRONG)
def test_wrong_options_are_refused_in_qemu_s_words_and_leave_nothing(folder, case):
    line, text = WRONG[case]
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(folder / "live"))
        live.listen()
        status, output, errors = run("serve", *(word.format(folder=folder) for word in line.split()))
    assert (status, output) == (1 if case in OPENED else 2, "")
    assert errors.count("\n") <= 2, errors
    assert errors.startswith("virtserial: ")
    assert text.format(folder=folder) in errors
    assert WAYS_OUT.get(case, "").format(folder=folder) in errors
    assert os.listdir(folder) == ["live"]
    assert not [words for _, words in descendants() if os.fsencode(folder) in b" ".join(words)]


def test_error_says_which_option_it_is_about(folder):
    words = CONTROLLER.format(folder=folder).split()
    _, _, errors = run("serve", *words, "-device", "virtserialport,bus=foo.0")
    assert errors == (
        "virtserial: -device virtserialport,bus=foo.0: Bus 'foo.0' not found\n"
        "virtserial: the only bus is ser0.0\n"
    )
    _, _, errors = run("serve", *words, "-chardev", "foo,id=a")
    assert errors == (
        "virtserial: -chardev foo,id=a: 'foo' is not a valid char driver name\n"
        "virtserial: `-chardev help` lists the kinds; options are KIND,id=ID,key=value\n"
    )


def test_file_that_exists_is_not_emptied_by_a_start_that_fails(folder):
    (folder / "precious").write_text("precious")
    words = [CONTROLLER, "-chardev file,id=f,path={folder}/precious", "-device virtserialport,bus=foo.0"]
    status, _, _ = run("serve", *" ".join(words).format(folder=folder).split())
    assert status == 2
    assert (folder / "precious").read_text() == "precious"
