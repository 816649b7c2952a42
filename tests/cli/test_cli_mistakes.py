"""A hundred mistakes on command lines: each answer names what is wrong and the way out, in two lines, with status 2.

Everything runs in this process, and nothing is opened.  Status 1 is for what a good command line meets, and for
virtserial-qemu's options that are QEMU's, as with QEMU.
"""

from __future__ import annotations

import shlex
import signal

import pytest

from virtserial.cli import main as virtserial
from virtserial.cli import qemu
from virtserial.client import names, registry
from virtserial.guest import __main__ as guest

C = "serve -device virtio-serial,id=ser0,socket={folder}/s"
"""A controller, to which each mistake is added."""

SERVE = [
    # The words of options.
    ("serve -devise virtio-serial", "-devise: invalid option", "did you mean '-device'?"),
    ("serve -chardv null,id=c", "-chardv: invalid option", "did you mean '-chardev'?"),
    ("serve --device=virtio-serial", "--device=virtio-serial: invalid option", "write '--device virtio-serial'"),
    ("serve virtio-serial", "virtio-serial: invalid option", "did you mean '-device virtio-serial'?"),
    ("serve -device", "-device: requires an argument", "`-device help` lists the devices"),
    ("serve -chardev", "-chardev: requires an argument", "`-chardev help` lists the kinds"),
    ("serve -qmp", "-qmp: requires an argument", "write unix:PATH,server=on,wait=off"),
    ("serve --name", "--name: requires an argument", "`virtserial serve --help` lists the options"),
    (f"{C} --log-format xml", "--log-format xml: one of text, json", "`virtserial serve --help`"),
    ("serve --trust-vm", "--trust-vm: invalid option", "did you mean '-trust-vmm'?"),
    ("serve --trust-vmm=on", "--trust-vmm=on: invalid option", "write '--trust-vmm' alone"),
    ("serve --sandbox=of", "--sandbox=of: invalid option", "did you mean '-sandbox=off'?"),
    ("serve --xyzzy", "--xyzzy: invalid option", "`virtserial serve --help` lists the options"),
    ("serve --socket-path=/x --fd=3", "--socket-path and --fd exclude each other", "leave out one of the two"),
    ("serve -chardev null,id=c0", "no controller", "say -device virtio-serial,socket=PATH"),
    (f"{C} --ready-fd 900", "--ready-fd 900: not an open descriptor", "the number of a descriptor"),
    (f"{C} --ready-fd x", "--ready-fd x: not an open descriptor", "the number of a descriptor"),
    ("serve --fd=901", "--fd 901: not an open descriptor", "the number of a descriptor"),
    # Devices.
    ("serve -device virtio-seral", "'virtio-seral' is not a valid device model name", "did you mean 'virtio-serial'?"),
    ("serve -device e1000", "-device e1000: 'e1000' is not a valid", "`-device help` lists the devices"),
    ("serve -device virtserialprot,help", "'virtserialprot' is not a valid", "did you mean 'virtserialport'?"),
    ("serve -device virtio-serial-ccw", "'virtio-serial-ccw' is not supported", "`-device help` lists the devices"),
    ("serve -device id=x", "-device id=x: Parameter 'driver' is missing", "`-device help` lists the devices"),
    ("serve -device '{{\"driver\":'", "JSON parse error", "`-device help` lists the devices"),
    ("serve -device virtio-serial,max_port=4", "'virtio-serial-pci.max_port' not found", "did you mean 'max_ports'?"),
    ("serve -device virtio-serial,max_ports=0", "number of serial ports not specified", "max_ports= is 1 to 511"),
    ("serve -device virtio-serial,max_ports=512", "maximum ports supported: 511", "a second -device virtio-serial"),
    ("serve -device virtio-serial,max_ports=many", "'max_ports' expects integer", "virtio-serial,help` lists"),
    ("serve -device virtio-serial,vectors=4096", "MSI-X has at most 2048", "without vectors="),
    ("serve -device virtio-serial,event_idx=maybe", "'event_idx' expects 'on' or 'off'", "virtio-serial,help` lists"),
    ("serve -device virtio-serial,unplug=yes", "unplug' doesn't take value 'yes'", "unplug= takes on, off, auto"),
    ("serve -device virtio-serial,id=7", "Parameter 'id' expects an identifier", "starting with a letter"),
    ("serve -device virtio-serial,disable-modern=on,disable-legacy=on", "neither modern nor legacy", "to off"),
    (f"{C} -device virtio-serial,id=ser0", "Duplicate device ID 'ser0'", "give each device an id= of its own"),
    (f"{C} -device virtio-serial,socket={{folder}}/s", "another controller listens there", "a socket= of its own"),
    ("serve -device virtserialport", "No 'virtio-serial-bus' bus found", "-device virtio-serial"),
    (f"{C} -device virtserialport,bus=ser1.0", "Bus 'ser1.0' not found", "did you mean 'ser0.0'?"),
    (f"{C} -device virtserialport,bus=pci", "Bus 'pci' not found", "the only bus is ser0.0"),
    (f"{C} -device virtserialport,nr=31", "max. allowed: 30", "give controller ser0 a larger max_ports=, up to 511"),
    (f"{C} -device virtserialport,nr=0", "Port number 0", "nr= is 1 to 30"),
    (f"{C} -device virtserialport,nr=-1", "'nr' expects uint32_t", "`-device virtserialport,help` lists"),
    (f"{C} -device virtserialport,nr=1 -device virtserialport,nr=1", "already exists at id 1", "another nr=, or none"),
    (f"{C} -device virtserialport,name=a -device virtserialport,name=a", "by name a", "give it another name="),
    (f"{C},max_ports=2 -device virtserialport -device virtserialport", "max. allowed: 1", "a larger max_ports="),
    (f"{C} -device virtserialport,nam=a", "'virtserialport.nam' not found", "did you mean 'name'?"),
    (f"{C} -device virtserialport,chardev=c0", "can't find value 'c0'", "it needs a -chardev KIND,id=c0"),
    (f"{C} -chardev null,id=con0 -device virtconsole,chardev=com0", "can't find value 'com0'", "did you mean 'con0'?"),
    (f"{C} -chardev null,id=c -device virtconsole,chardev=c -device virtserialport,chardev=c", "in use", "mux=on"),
    (f"{C} -device virtconsole,cols=70000", "console of 70000 columns", "at most 65535 each"),
    # Host ends.
    (f"{C} -chardev sokcet,id=c", "'sokcet' is not a valid char driver name", "did you mean 'socket'?"),
    (f"{C} -chardev frob,id=c", "'frob' is not a valid char driver name", "`-chardev help` lists the kinds"),
    (f"{C} -chardev spicevmc,id=c", "'spicevmc' is not supported by virtserial", "`-chardev help` lists"),
    (f"{C} -chardev null", "-chardev null: chardev: no id specified", "write KIND,id=ID"),
    (f"{C} -chardev id=c", "missing backend", "`-chardev help` lists the kinds"),
    (f"{C} -chardev null,id=c -chardev null,id=c", "Duplicate ID 'c' for chardev", "an id= of its own"),
    (f"{C} -chardev socket,id=c", "-chardev socket,id=c: Unable to parse FD number", "a socket has path=PATH"),
    (f"{C} -chardev socket,id=c,path=/x,host=y", "None or one of 'path', 'fd' or 'host'", "a socket has path=PATH"),
    (f"{C} -chardev socket,id=c,host=y", "no port given", "host=HOST,port=PORT"),
    (f"{C} -chardev socket,id=c,pth=/x", "Invalid parameter 'pth'", "did you mean 'path'?"),
    (f"{C} -chardev socket,id=c,path=/x,wait=on", "'wait' option is incompatible", "add server=on"),
    (f"{C} -chardev socket,id=c,path=/x,server=on,reconnect-ms=9", "'reconnect-ms' option", "leave out server=on"),
    (f"{C} -chardev socket,id=c,path=/x,clients=4", "'clients' option is incompatible", "add server=on"),
    (f"{C} -chardev socket,id=c,path=/x,server=on,clients=65", "'clients' expects a number from 1 to 64", "help`"),
    (f"{C} -chardev socket,id=c,path=/x,server=on,slow=stop", "'slow' expects one of", "block"),
    (f"{C} -chardev socket,id=c,path=/x,websocket=on", "Websocket client is not implemented", "add server=on"),
    (f"{C} -chardev socket,id=c,path=/x,server=yess", "'server' expects 'on' or 'off'", "`-chardev help`"),
    (f"{C} -chardev socket,id=c,path=/x,tls-creds=t", "No TLS credentials with id 't'", "-object tls-creds-x509,id=t"),
    (f"{C} -chardev file,id=c", "file: no filename given", "add path=PATH"),
    (f"{C} -chardev pipe,id=c", "pipe: no device path given", "add path=PATH"),
    (f"{C} -chardev serial,id=c", "no device path given", "add path=PATH"),
    (f"{C} -chardev udp,id=c", "udp: remote port not specified", "host=HOST,port=PORT"),
    (f"{C} -chardev ringbuf,id=c,size=1000", "must be power of two", "as size=64k; 1000 is none"),
    (f"{C} -chardev hub,id=c,chardevs.0=x", "can't be found by id 'x'", "comes before the hub's"),
    (f"{C} -chardev handler,id=c", "neither 'class' nor 'path' given", "path=FILE.py"),
    # Monitors and objects.
    (f"{C} -qmp /tmp/q", "-qmp /tmp/q: '/tmp/q' is not a monitor's chardev", "write unix:PATH"),
    (f"{C} -monitor sdtio", "'sdtio' is not a monitor's chardev", "or stdio"),
    (f"{C} -mon chardev=m", 'chardev "m" not found', "it needs a -chardev KIND,id=m"),
    (f"{C} -mon mode=qmp", 'unknown monitor mode "qmp"', "mode=control for QMP"),
    (f"{C} -mon chardev=m,mod=control", "Invalid parameter 'mod'", "did you mean 'mode'?"),
    (f"{C} -object secret,id=s", "does not accept value 'secret'", "tls-creds-x509"),
    (f"{C} -object tls-creds-x509,id=t,dirr=/x", "Invalid parameter 'dirr'", "did you mean 'dir'?"),
]

COMMANDS = [
    ("sevre", "'sevre' is not a command", "did you mean 'serve'?"),
    ("frobnicate", "'frobnicate' is not a command", "`virtserial --help` lists them"),
    ("ls --jsno", "--jsno: invalid option", "did you mean '--json'?"),
    ("ls --watch x", "argument --watch: 'x' is no time", "write seconds, as 10 or 0.5"),
    ("ls --watch 0", "argument --watch: '0' is too often", "at least 0.1 seconds"),
    ("ports --jason", "--jason: invalid option", "did you mean '--json'?"),
    ("console", "the following arguments are required: PORT", "`virtserial console --help` lists the options"),
    ("console --forse vm1", "--forse: invalid option", "did you mean '--force'?"),
    ("console --escape ^^^ vm1", "--escape ^^^: ", "`virtserial console --help` lists the options"),
    ("console --record", "argument --record: expected one argument", "`virtserial console --help`"),
    ("send vm1/p", "the following arguments are required: PATH", "`virtserial send --help`"),
    ("send vm1/p x --timeout soon", "argument --timeout: 'soon' is no time", "write seconds"),
    ("receive vm1/p out --limit 10q", "argument --limit: '10q' is no size", "k, M, G or T"),
    ("log vm1/p --from x --to y", "argument --to: not allowed with argument --from", "`virtserial log --help`"),
    ("record vm1/p x --keep many", "argument --keep: invalid int value: 'many'", "`virtserial record --help`"),
    ("replay x --speed -1", "--speed is negative", "`virtserial replay --help`"),
    ("replay x vm1/p --listen /y", "either PORT or --listen", "`virtserial replay --help`"),
    ("pipe --sesion vm1", "--sesion: invalid option", "did you mean '--session'?"),
    ("ssh -l me vm1", "say the VM first", "`virtserial ssh --help` shows the order"),
    ("restart", "say VM, or --monitor SOCKET", "`virtserial restart --help`"),
    ("restart vm1 --worker-only", "--worker-only: invalid option", "did you mean '--worker'?"),
    ("save --monitor /x", "the following arguments are required: FILE", "`virtserial save --help`"),
    ("restore state", "the following arguments are required: --monitor", "`virtserial restore --help`"),
    ("guest atach /x", "'atach' is not a command", "did you mean 'attach'?"),
    ("guest attach", "the following arguments are required: DEVICE", "`virtserial guest attach --help`"),
    ("guest attach /x --as tty", "argument --as: invalid choice: 'tty'", "cuse"),
    ("guest attach /x --mode 999", "argument --mode: '999' is no mode", "write octal digits, 0 to 777"),
    ("guest bind eth0", "'eth0' is not a PCI address such as 0000:00:05.0", "`lspci -D` lists them"),
    ("health --wait soon", "argument --wait: 'soon' is no time", "write seconds"),
    ("exporter --listn x", "--listn: invalid option", "did you mean '--listen'?"),
    ("conformance", "the following arguments are required: TARGET\n", "`virtserial conformance --help`"),
    ("conformance --junti x qemu:", "--junti: invalid option", "did you mean '--junit'?"),
    ("fleet joyn", "invalid choice: 'joyn'", "join"),
    ("demo --size 0", "argument --size: '0' is no size", "1 to 4096 MiB"),
    ("demo --gest qemu", "--gest: invalid option", "did you mean '--guest'?"),
]

MET = [
    ("ports vm", "no VM called 'vm' runs here", "did you mean 'vm1'?"),
    ("console vm2", "no VM called 'vm2' runs here", "did you mean 'vm1'?"),
    ("pipe org.example.0", "no VM called 'org.example.0' runs here", "did you mean 'vm1/org.example.0'?"),
    ("ls vm2", "no VM called 'vm2' runs here", "did you mean 'vm1'?"),
    ("pipe org.exmaple.0", "no VM called 'org.exmaple.0' runs here", "did you mean 'vm1/org.example.0'?"),
    ("receive something {folder}", "no VM called 'something' runs here", "write VM/PORT"),
    ("send vm1/org.exmaple.0 x", "x: there is no such file", ""),
    ("pipe vm1/org.exmaple.0", "VM 'vm1' has no port 'org.exmaple.0'", "did you mean 'org.example.0'?"),
    ("console vm1/nowhere", "has no host end", "-chardev"),
    ("pipe tcp:localhost:http", "'http' is not a TCP port", "1 to 65535"),
    ("console --force unix:{folder}/x", "--force needs the port's name", "VM/PORT"),
    ("restart --monitor {folder}/no", "monitor {folder}/no: No such file", "-qmp unix:{folder}/no,server=on,wait=off"),
    ("ssh vm1", "has no port 'org.virtserial.ssh.0'", "give it one"),
]
"""Good command lines that meet something else than they name."""

Q = "-device virtio-serial,id=ser0"
QEMU = [
    ("--take-hosts-from", "--take-hosts-from: requires an argument", "process number", 2),
    (f"{Q} -device virtserialport,nam=x", "'virtserialport.nam' not found", "did you mean 'name'?", 1),
    (f"{Q} -device virtserialport,bus=ser.0", "Bus 'ser.0' not found", "did you mean 'ser0.0'?", 1),
    (f"{Q} -device virtserialport,chardev=x", "can't find value 'x'", "it needs a -chardev KIND,id=x", 1),
    (f"{Q} -device virtserialport,nr=77", "max. allowed: 30", "a larger max_ports=", 1),
    (f"{Q} -device virtio-serial,id=ser0", "Duplicate device ID 'ser0'", "an id= of its own", 1),
    (f"{Q} -chardev file,id=f -device virtconsole,chardev=f", "no filename given", "add path=PATH", 1),
    (f"{Q},vectors=x", "expects integer", "`-device virtio-serial,help` lists its properties", 1),
    ("-device '{{'", "-device {: JSON parse error", "`-device help` lists the devices", 1),
]
GUEST = [
    ("recieve", "'recieve' is not a command", "did you mean 'receive'?"),
    ("send org.example.0", "the following arguments are required: PATH", "`virtserial-guest send --help`"),
    ("console --wiat p", "--wiat: invalid option", "did you mean '--wait'?"),
    ("ports --run-dri x", "--run-dri: invalid option", "did you mean '--run-dir'?"),
]


def port(number, **told):
    texts = dict.fromkeys(("id", "name", "console", "chardev", "kind", "host-end", "watch"), "")
    numbers = dict.fromkeys(("client-pid", "to-host", "to-guest", "discarded", "dropped", "doubtful"), 0)
    place = {"controller": "ser0", "number": number, "max-clients": 1, "clients": 0, "guest-open": False}
    return {**texts, **numbers, **place, **told}


@pytest.fixture
def say(monkeypatch, capsys, folder):
    """Runs a program's line where one VM runs, and returns (status, standard error)."""
    vm = registry.Vm("vm1", 1, 0, str(folder))
    inventory = {"folder": "/", "controllers": [], "ports": [port(1, name="org.example.0"), port(2, name="nowhere")]}
    for module in (registry, names):
        monkeypatch.setattr(module, "running_vms", lambda: [vm])
    monkeypatch.setattr(registry.Vm, "inventory", lambda self, **_: inventory)
    monkeypatch.setenv("VIRTSERIAL_QEMU", "/bin/true")
    old = signal.getsignal(signal.SIGPIPE)

    def run(program, line):
        try:
            status = program.main(shlex.split(line.format(folder=folder)))
        except SystemExit as end:
            status = end.code
        return status, capsys.readouterr().err

    yield run
    signal.signal(signal.SIGPIPE, old)


def check(answer, status, wrong, way_out, folder):
    assert answer[0] == status, answer
    for text in (wrong, way_out):
        assert text.replace("{folder}", str(folder)) in answer[1]
    lines = answer[1].splitlines()
    assert 1 <= len(lines) <= 3
    assert all(line.startswith(("virtserial", "Identifiers consist")) for line in lines)


@pytest.mark.parametrize(("line", "wrong", "way_out"), [*SERVE, *COMMANDS])
def test_a_wrong_command_line(say, folder, line, wrong, way_out):
    check(say(virtserial, line), 2, wrong, way_out, folder)


@pytest.mark.parametrize(("line", "wrong", "way_out"), MET)
def test_a_command_line_that_meets_something_else(say, folder, line, wrong, way_out):
    check(say(virtserial, line), 1, wrong, way_out, folder)


@pytest.mark.parametrize(("line", "wrong", "way_out", "status"), QEMU)
def test_a_wrong_command_line_of_the_drop_in(say, folder, line, wrong, way_out, status):
    check(say(qemu, line), status, wrong, way_out, folder)


@pytest.mark.parametrize(("line", "wrong", "way_out"), GUEST)
def test_a_wrong_command_line_in_a_guest(say, folder, line, wrong, way_out):
    check(say(guest, line), 2, wrong, way_out, folder)


def test_there_are_a_hundred():
    assert len(SERVE) + len(COMMANDS) + len(MET) + len(QEMU) + len(GUEST) >= 100
