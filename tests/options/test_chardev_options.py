"""-chardev: texts as QEMU 11.1.3 printed them for the same arguments."""

import pytest

from virtserial.chardev.file import FileChardev
from virtserial.chardev.handler_chardev import HandlerChardev
from virtserial.chardev.null import NullChardev
from virtserial.chardev.pipe import PipeChardev
from virtserial.chardev.pty import PtyChardev
from virtserial.chardev.ringbuf import RingbufChardev
from virtserial.chardev.serial import LineSettings, SerialChardev
from virtserial.chardev.socket_address import FdAddress, InetAddress, UnixAddress
from virtserial.chardev.socket_client import SocketClientChardev
from virtserial.chardev.socket_layers import SocketLayers
from virtserial.chardev.socket_server import SocketServerChardev
from virtserial.chardev.stdio import StdioChardev
from virtserial.chardev.tls_credentials import TlsCredentials
from virtserial.chardev.udp import UdpChardev
from virtserial.errors import ConfigError
from virtserial.options.chardev_options import QEMU_ONLY, chardev_help, parse_chardev

IDENTIFIER = (
    "Parameter 'id' expects an identifier\n"
    "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter."
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("foo,id=a", "'foo' is not a valid char driver name"),
        ("socket,path=/tmp/x", "chardev: no id specified"),
        ("socket,id=a", "Unable to parse FD number "),
        ("socket,id=a,port=1", "Unable to parse FD number "),
        ("socket,id=a,fd=foo", "Unable to parse FD number foo"),
        ("socket,id=a,path=/tmp/zz,bogus=1", "Invalid parameter 'bogus'"),
        ("foo,id=a,bogus=1", "Invalid parameter 'bogus'"),
        ("null,id=a,foo", "Invalid parameter 'foo'"),
        ("null,id=a,nofoo", "Invalid parameter 'foo'"),
        ("socket,id=a,path=/tmp/zz,server=maybe", "Parameter 'server' expects 'on' or 'off'"),
        ("null,id=a,server=maybe", "Parameter 'server' expects 'on' or 'off'"),
        ("id=a,path=x", 'chardev: "a" missing backend'),
        ("null", "chardev: no id specified"),
        ("null,", "chardev: no id specified"),
        ("", "chardev: no id specified"),
        ('{"backend":"null"}', "chardev: no id specified"),
        ("null,id=1a", IDENTIFIER),
        ("null,id=", IDENTIFIER),
        ("null,id=taken", "Duplicate ID 'taken' for chardev"),
        ("file,id=a", "chardev: file: no filename given"),
        ("file,path=/x,append=7,id=a", "Parameter 'append' expects 'on' or 'off'"),
        ("pipe,id=a", "chardev: pipe: no device path given"),
        ("udp,id=a", "chardev: udp: remote port not specified"),
        ("serial,id=a", "chardev: serial/tty: no device path given"),
        ("ringbuf,id=a,size=3000", "size of ringbuf chardev must be power of two"),
        ("ringbuf,id=a,size=-1", "Value '-1' is out of range for parameter 'size'"),
        ("socket,id=a,path=/zz,wait=on", "'wait' option is incompatible with socket in client connect mode"),
        (
            "socket,id=a,path=/zz,server=on,wait=off,reconnect-ms=100",
            "'reconnect-ms' option is incompatible with socket in server listen mode",
        ),
        (
            "socket,id=a,path=/zz,server=on,reconnect=1",
            "'reconnect' option is incompatible with socket in server listen mode",
        ),
        ("socket,id=a,fd=3,reconnect-ms=3", "'reconnect-ms' option is incompatible with 'fd' address type"),
        ("socket,id=a,path=/zz,reconnect=1,reconnect-ms=1", "'reconnect' and 'reconnect-ms' are mutually exclusive"),
        ("socket,id=a,path=/zz,reconnect-ms=x", "Parameter 'reconnect-ms' expects a number"),
        ("socket,id=a,host=127.0.0.1", "chardev: socket: no port given"),
        ("socket,id=a,fd=0,path=/x", "None or one of 'path', 'fd' or 'host' option required."),
        ("socket,id=a,host=h,path=/x,server=on", "None or one of 'path', 'fd' or 'host' option required."),
        ("handler,id=a", "chardev: handler: neither 'class' nor 'path' given"),
        ("socket,id=a,path=/x,websocket=on", "Websocket client is not implemented"),
        ("socket,id=a,path=/x,server=on,tn3270=on", "'tn3270' is not supported by virtserial"),
        ("socket,id=a,path=/x,tls-creds=c", "No TLS credentials with id 'c'"),
        ("socket,id=a,path=/x,tls-authz=c", "'tls_authz' option requires 'tls_creds' option"),
        ("hub,id=h", "hub: 'chardevs' list is not defined"),
        ("hub,id=h,chardevs.1=taken", "hub: 'chardevs' list is not defined"),
        ("hub,id=h,chardevs.0=a", "hub: chardev can't be found by id 'a'"),
        ("hub,id=h,chardevs.0=taken,chardevs.1=taken", "chardev 'taken' is already in use"),
        ("hub,id=h,chardevs.0=taken,chardevs.4=taken", "Invalid parameter 'chardevs.4'"),
        *[
            (f"{kind},id=a", f"'{kind}' is not supported by virtserial: it is a back end of QEMU's own")
            for kind in QEMU_ONLY
        ],
    ],
)
def test_refused(text, message):
    with pytest.raises(ConfigError) as caught:
        parse_chardev(text, {"taken": NullChardev("taken")})
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("null,id=a", NullChardev),
        ("null,id=a,path=/ignored,telnet=off", NullChardev),
        ("stdio,id=a,signal=off", StdioChardev),
        ("pipe,id=a,path=/p", PipeChardev),
        ("pty,id=a", PtyChardev),
        ("pty,id=a,path=/link", PtyChardev),
        ("file,id=a,path=/f,append,input-path=/i", FileChardev),
        ("ringbuf,id=a", RingbufChardev),
        ("memory,id=a,size=4K", RingbufChardev),
        ("handler,id=a,class=m:C", HandlerChardev),
        ("udp,id=a,port=9", UdpChardev),
        ("serial,id=a,path=/dev/ttyS0", SerialChardev),
        ("socket,id=a,path=/s,server,nowait", SocketServerChardev),
        ("socket,id=a,path=/s", SocketClientChardev),
    ],
)
def test_kinds(text, kind):
    chardev = parse_chardev(text)
    assert type(chardev) is kind
    assert chardev.id == "a"


def test_fedora_page():
    chardev = parse_chardev("socket,path=/tmp/foo,server,nowait,id=foo")
    assert (chardev.id, chardev.wait, chardev.address) == ("foo", False, UnixAddress("/tmp/foo"))
    assert chardev.filename == "disconnected:unix:/tmp/foo,server=on"


def test_server_waits_unless_told_otherwise():
    assert parse_chardev("socket,path=/tmp/foo,server=on,id=foo").wait


@pytest.mark.parametrize(
    ("options", "address"),
    [
        ("path=/a,,b", UnixAddress("/a,b")),
        ("path=n,abstract=on", UnixAddress("n", abstract=True)),
        ("path=n,abstract,tight=off", UnixAddress("n", abstract=True, tight=False)),
        ("host=h,port=1,to=9,ipv4=off", InetAddress("h", "1", 9, False, None)),
        ("host=,port=http", InetAddress("", "http")),
        ("fd=7", FdAddress(7)),
    ],
)
def test_addresses(options, address):
    assert parse_chardev(f"socket,id=a,{options}").address == address


@pytest.mark.parametrize(("option", "seconds"), [("reconnect-ms=250", 0.25), ("reconnect=2", 2), ("reconnect-ms=0", 0)])
def test_reconnect(option, seconds):
    assert parse_chardev(f"socket,id=a,path=/s,{option}").reconnect_seconds == seconds


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ("telnet=on", SocketLayers(server=False, telnet=True)),
        ("telnet=on,server=on", SocketLayers(server=True, telnet=True)),
        ("websocket=on,server=on", SocketLayers(server=True, websocket=True)),
        ("server=on", SocketLayers(server=True)),
    ],
)
def test_socket_layers(options, layers):
    assert parse_chardev(f"socket,id=a,path=/s,{options}").layers == layers


def test_tls_credentials():
    credentials = TlsCredentials("c", "server", True, {})
    chardev = parse_chardev("socket,id=a,path=/s,server=on,tls-creds=c", objects={"c": credentials})
    assert chardev.layers == SocketLayers(server=True, tls=credentials)
    for text, message in (
        ("socket,id=a,path=/s,tls-creds=c", "Expected TLS credentials for a client endpoint"),
        ("socket,id=a,path=/s,server=on,tls-creds=c,tls-authz=z", "'tls-authz' is not supported by virtserial"),
    ):
        with pytest.raises(ConfigError) as caught:
            parse_chardev(text, objects={"c": credentials})
        assert str(caught.value) == message


def test_hub():
    parts = {name: parse_chardev(f"null,id={name}") for name in ("a", "b", "c")}
    hub = parse_chardev("hub,id=h,chardevs.0=a,chardevs.1=b", parts)
    assert hub.parts == [parts["a"], parts["b"]]
    assert [part.hub for part in parts.values()] == [hub, hub, None]
    known = {**parts, "h": hub, "m": parse_chardev("null,id=m,mux=on")}
    stacked = (
        "hub: multiplexers and hub devices can't be stacked, check chardev '{}', "
        "chardev should not be a hub device or have 'mux=on' enabled"
    )
    for part, message in (("a", "chardev 'a' is already in use"), ("h", stacked), ("m", stacked)):
        with pytest.raises(ConfigError) as caught:
            parse_chardev(f"hub,id=g,chardevs.0=c,chardevs.1={part}", known)
        assert str(caught.value) == message.format(part)
        assert parts["c"].hub is None
    hub.close()
    assert parts["a"].hub is None


def test_mux():
    plain, mux = parse_chardev("null,id=a"), parse_chardev("null,id=a,mux=on")
    assert (plain.max_users, plain.listing()) == (1, [("a", "null")])
    assert (mux.max_users, mux.listing()) == (4, [("a", "mux"), ("a-base", "null")])
    assert not mux.mux_quit
    assert parse_chardev("null,id=a,mux=on,mux-quit=on").mux_quit


def test_logfile():
    plain, logged = parse_chardev("null,id=a"), parse_chardev("null,id=a,logfile=/l,mux=on")
    assert plain.backend is plain
    assert (logged.backend.kind, logged.path, logged.append) == ("null", "/l", False)
    assert (logged.id, logged.kind, logged.mux, logged.recipe[0]) == ("a", "null", True, "null")
    assert parse_chardev("null,id=a,logfile=/l,logappend=on").append


def test_ringbuf():
    chardev = parse_chardev("memory,id=a,size=4K")
    assert (chardev.size, chardev.kind) == (4096, "memory")
    assert parse_chardev("ringbuf,id=a,size=0").size == 65536


def test_file():
    chardev = parse_chardev("file,id=a,path=/f,append=on,input-path=/i")
    assert (chardev.path, chardev.append, chardev.input_path) == ("/f", True, "/i")


@pytest.mark.parametrize(
    ("options", "remote", "local"),
    [
        ("port=9", InetAddress("localhost", "9"), InetAddress("", "0")),
        ("host=h,port=9,ipv6=off,localport=7", InetAddress("h", "9", None, None, False), InetAddress("", "7")),
        ("host=h,port=9,localaddr=1.2.3.4", InetAddress("h", "9"), InetAddress("1.2.3.4", "0")),
    ],
)
def test_udp(options, remote, local):
    chardev = parse_chardev(f"udp,id=a,{options}")
    assert (chardev.remote, chardev.local) == (remote, local)


def test_serial():
    assert parse_chardev("serial,id=a,path=/d").settings == LineSettings(115200, 8, "none", 1)
    chardev = parse_chardev("serial,id=a,path=/d,speed=9600,data-bits=7,parity=even,stop-bits=2")
    assert (chardev.path, chardev.settings) == ("/d", LineSettings(9600, 7, "even", 2))


def test_json():
    chardev = parse_chardev('{"backend":"socket","id":"a","path":"/s","server":true,"wait":false}')
    assert (type(chardev), chardev.wait) == (SocketServerChardev, False)


def test_help_names_every_kind():
    assert chardev_help().splitlines()[1:] == [
        f"  {kind}"
        for kind in (
            *("socket", "udp", "serial", "pty", "file", "pipe", "stdio", "null", "ringbuf", "memory", "hub", "handler"),
        )
    ]
