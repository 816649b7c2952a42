"""HMP: its lines, echo and completion, byte for byte as QEMU 11.1.3 shows them."""

from __future__ import annotations

import os

import pytest
from support.serving import Client, serve

from virtserial.monitor.readline import Readline

LEFT, RIGHT, ERASE = "\x1b[D", "\x1b[C", "\x1b[K"


def typed(text, words=()):
    """(what is shown, the lines) when text is typed after the first prompt."""
    line = Readline("> ", lambda head: ([word for word in words if word.startswith(head)], len(head)))
    line.show_prompt()
    line.output()
    lines = []
    for character in text:
        ended = line.type(character)
        if ended is not None:
            lines.append(ended)
            line.show_prompt()
    return line.output(), lines


@pytest.mark.parametrize(
    ("keys", "shown"),
    [
        ("in", f"i{ERASE}{LEFT}in{ERASE}"),
        ("ab\x01X", f"a{ERASE}{LEFT}ab{ERASE}{LEFT * 2}Xab{ERASE}{LEFT * 2}"),
        ("ab\x15", f"a{ERASE}{LEFT}ab{ERASE}{LEFT * 2}{ERASE}"),
        ("a\n\x10", f"a{ERASE}\n> a{ERASE}"),
        ("\x1b[A\x03\x0b\x7f", ""),
        ("a\x0c", f"a{ERASE}\x1b[2J\x1b[1;1H> a{ERASE}"),
    ],
)
def test_the_echo_is_qemus(keys, shown):
    assert typed(keys)[0] == shown


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ("abc\x01X\x05Y\x02\x02Z\n", "XabZcY"),
        ("info stat\x1b[D\x1b[D\x04\x1b[H\x1b[F\x1b[3~\n", "info stt"),
        ("ab cd\x17ef\n", "ab ef"),
        ("abc\x1b[D\x0b\n", "ab"),
        ("ab\x08c\n", "ac"),
        ("a\x1b[99;1Zb\n", "ab"),
    ],
)
def test_keys(keys, line):
    assert typed(keys)[1] == [line]


def test_history():
    assert typed("one\ntwo\n\x10\x10\n\x10\x0e\n")[1] == ["one", "two", "one", ""]


def test_completion():
    words = ["chardev-add", "chardev-change", "device_add"]
    assert typed("d\t", words)[0].endswith(f"device_add {ERASE}")
    shown = typed("ch\t", words)[0]
    assert shown.endswith(f"\nchardev-add     chardev-change  \n> chardev-{ERASE}")


@pytest.fixture
def hmp(served, folder):
    client = Client(f"{folder}/hmp")
    client.until(b"QEMU 11.1.3 monitor - type 'help' for more information\r\n(qemu) ")
    yield client
    client.close()


def run(client, line):
    """What a line prints."""
    client.send(line.encode() + b"\n")
    return client.until(b"\r\n(qemu) ").decode().partition("\r\n")[2].removesuffix("(qemu) ").replace("\r\n", "\n")


def hint(command):
    return f'Try "help {command}" for more information\n'


def test_lines_and_their_errors_are_qemus(hmp):
    for line, printed in (
        ("info status", "VM status: running\n"),
        ("   info    status  ", "VM status: running\n"),
        ("foo", "unknown command: 'foo'\n"),
        ("info foo", "unknown command: 'info foo'\n"),
        ("help zz", "unknown command: 'zz'\n"),
        ("", ""),
        ("info status x", "status: extraneous characters at the end of line\n" + hint("info status")),
        ("device_del", "device_del: string expected\n" + hint("device_del")),
        ("device_del a b", "device_del: extraneous characters at the end of line\n" + hint("device_del")),
        ('device_del "a 1"', "Error: Device 'a 1' not found\n"),
        ("device_add", "Error: Parameter 'driver' is missing\n"),
        ("chardev-add null,id=k", ""),
        ("chardev-add foo,id=j", "Error: 'foo' is not a valid char driver name\n"),
        ("chardev-add null", "Error: chardev: no id specified\n"),
        ("chardev-change k", "chardev-change: string expected\n" + hint("chardev-change")),
        ("chardev-change k ringbuf", ""),
        ("chardev-change k null,id=x", "Error: Unexpected 'id' parameter\n"),
        ("chardev-change zz null", "Error: Chardev 'zz' does not exist\n"),
        ("chardev-send-break k", ""),
        ("device_add virtserialport,id=h1,chardev=k", ""),
        ("device_add virtserialport,id=h1", "Error: Duplicate device ID 'h1'\n"),
        ("chardev-remove k", "Error: Chardev 'k' is busy\n"),
        ("device_del h1", ""),
        ("chardev-remove k", ""),
        ("chardev-remove kk", "Error: Chardev 'kk' not found\n"),
        ("help chardev-add", "chardev-add args -- add chardev\n"),
        ("help quit", "quit|q  -- quit the emulator\n"),
        ("help help", "help|? [cmd] -- show the help\n"),
        ("help info qtree", "info qtree [-b] -- show device tree (-b: brief, omit properties)\n"),
        ("help device_add", "device_add driver[,prop=value][,...] -- add device, like -device on the command line\n"),
    ):
        assert run(hmp, line) == printed, line


def test_what_there_is(hmp, folder):
    assert run(hmp, "chardev-add pty,id=py").startswith("char device redirected to /dev/pts/")
    run(hmp, "device_add virtserialport,id=p1,chardev=py,name=org.a,nr=2")
    assert f"compat_monitor1: filename=unix:{folder}/hmp,server=on\n" in run(hmp, "info chardev")
    tree = run(hmp, "info qtree")
    assert 'dev: virtserialport, id "p1"\n        chardev = "py"\n        nr = 2 (0x2)\n' in tree
    assert "port 2, guest off, host on" in tree
    assert "chardev" not in run(hmp, "info qtree -b")
    assert "chardev-add args" in run(hmp, "help")


def test_completion_knows_the_machine(hmp):
    run(hmp, "chardev-add null,id=first")
    hmp.send(b"chardev-remove f\t")
    hmp.until(b"chardev-remove first \x1b[K")
    hmp.send(b"\x15device_add virtser\t")
    hmp.until(b"device_add virtserialport \x1b[K")
    hmp.send(b"\x15\n")


def test_quit(served, hmp):
    hmp.send(b"quit\n")
    assert hmp.at_end()
    assert served.wait(60) == 0


def test_on_a_terminal(folder):
    master, slave = os.openpty()
    try:
        with serve("-device", f"virtio-serial,socket={folder}/vmm", "-monitor", "stdio", stdin=slave, stdout=slave):
            shown = b""
            while not shown.endswith(b"(qemu) "):
                shown += os.read(master, 4096)
            os.write(master, b"info status\r")
            while b"VM status: running\r" not in shown:
                shown += os.read(master, 4096)
    finally:
        os.close(master)
        os.close(slave)
