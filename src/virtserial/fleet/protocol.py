"""What agents and clients say to each other over NATS: this table is the protocol, and docs/fleet.md repeats it.

HOST, VM and PORT are tokens: letters, digits, - and _ stay, any other byte of the name's UTF-8 is =XX.

| what | subject | headers | payload | answer | from |
|---|---|---|---|---|---|
| output, in stream vs_out | vs.HOST.VM.PORT.out | Vs-At: AGENT OFFSET; Nats-Msg-Id | bytes | the stream's | agent |
| input | vs.HOST.VM.PORT.in | Vs-Session; Vs-Number | bytes | {"done": NUMBER} | client |
| session | vs.HOST.VM.PORT.ctl | Vs-Session | {"do": "open", "who", "force"} | {"agent", "from", "window"} | client |
| | | | {"do": "keep", "taken", "size"} | {"guest_open", "lost"} | client |
| | | | {"do": "close"} | {} | client |
| restart | vs.HOST.VM.restart | Vs-Session | {"keeper": bool} | {} | operator |
| plug | vs.HOST.VM.plug | Vs-Session | {"port", "console", "clients"} | {} | operator |
| unplug | vs.HOST.VM.unplug | Vs-Session | {"port"} | {} | operator |

| bucket (KV) | key | value | lives |
|---|---|---|---|
| vs_hosts | HOST | HostRecord | 15 s after the agent's last word |
| vs_ports | HOST.VM | VmRecord | until the agent deletes it; void when its agent is not the host's |
| vs_owners | HOST.VM.PORT | {"session", "who"} of an exclusive port | 15 s after the agent's last word |

* An answer with "error" is a refusal, in words for people.  Agents answer at subjects that begin with _INBOX only.
* Vs-Session is a random word of 8 to 64 characters: a session's own, or one for each request of an operator.  When it
  has ended, or the request was served, the agent refuses it as replayed.
* **Output.** OFFSET counts the bytes of the port since AGENT started; a gap is what was lost.  The stream keeps the
  last messages of each port.  One message of a port is under way at a time, and is sent again under its id until it is
  stored.
* **Input.** NUMBER begins at 1 in each session.  The agent answers when the port has taken all bytes.  A client that
  hears nothing sends the same NUMBER again; the agent answers without writing again.
* **A session** gets all output from sequence "from" on.  While "window" stored messages are not "taken", the agent does
  not read the port.  A session that says nothing for LEASE ends.
* **A host's name** and an exclusive port belong to whoever creates the key: the broker compares and sets.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, fields
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, TypeVar

from virtserial.errors import ConfigError, PeerError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import UnionType

STREAM: Final = "vs_out"
OUTPUTS: Final = "vs.*.*.*.out"
HOSTS: Final = "vs_hosts"
PORTS: Final = "vs_ports"
OWNERS: Final = "vs_owners"
AT: Final = "Vs-At"
SESSION: Final = "Vs-Session"
NUMBER: Final = "Vs-Number"
INBOX: Final = "_INBOX"
"""What each subject for answers begins with."""

PIECE: Final = 1 << 17
"""Bytes of one message of input or output."""
MAX_CONTROL: Final = 1 << 16
"""Bytes of any other request."""
WINDOW: Final = 64
"""Stored messages that a session may leave untaken."""
LEAST_KEPT: Final = 2 * WINDOW
"""The fewest messages that a stream may keep of each port: a session must find what it has not taken."""
MAKE_ONE: Final = "`virtserial fleet setup` makes one"
"""What to do where the broker has no fleet."""
LIFETIME: Final = 15.0
"""Seconds that a record of a host, or an owner's, outlives the agent's last word."""
HEARTBEAT: Final = 5.0
LEASE: Final = 12.0
KEEP: Final = 3.0
"""Seconds between two signs of life of a session."""
MAX_TOKEN: Final = 900
"""Bytes of an encoded name."""
MAX_RECORD: Final = 1 << 19

_PLAIN = re.compile(rb"[A-Za-z0-9_-]")
_TOKEN = re.compile(r"(?:[A-Za-z0-9_-]|=[0-9A-F]{2})+")


def token(name: str) -> str:
    """Encode a name.

    Raises:
        ConfigError: it is empty or too long.
    """
    encoded = "".join(
        chr(byte) if _PLAIN.match(bytes((byte,))) else f"={byte:02X}"
        for byte in name.encode("utf-8", "surrogateescape")
    )
    if not 0 < len(encoded) <= MAX_TOKEN:
        raise ConfigError(f"{name[:40]!r}: a name of a fleet has 1 to {MAX_TOKEN} bytes when encoded")
    return encoded


def is_inbox(subject: str) -> bool:
    """Whether a subject is one for answers."""
    return subject.startswith(INBOX)


def name_of(encoded: str) -> str:
    """Decode a token.

    Raises:
        PeerError: it is none, or not the one that token() makes of the name.
    """
    if len(encoded) > MAX_TOKEN or not _TOKEN.fullmatch(encoded):
        raise PeerError(f"{encoded[:40]!r} is no token of a name")
    data = re.sub(rb"=(..)", lambda found: bytes.fromhex(found[1].decode()), encoded.encode())
    name = data.decode("utf-8", "surrogateescape")
    if token(name) != encoded:
        raise PeerError(f"{encoded[:40]!r} is not how a name is encoded")
    return name


@dataclass(frozen=True, slots=True)
class Place:
    """A port of the fleet, by names."""

    host: str
    vm: str
    port: str

    def __str__(self) -> str:
        return f"{self.host}/{self.vm}/{self.port}"

    @property
    def key(self) -> str:
        """Its key in a bucket."""
        return ".".join(map(token, (self.host, self.vm, self.port)))

    def subject(self, verb: str) -> str:
        """The subject of `out`, `in` or `ctl`."""
        return f"vs.{self.key}.{verb}"


@dataclass(frozen=True, slots=True)
class HostRecord:
    """What an agent says of its host.

    Attributes:
        agent: a word that is another each time an agent starts.
        machine: the host's own name.
        since: when the agent started, in seconds of the epoch.
        version: of this package.
        lost: bytes of output that the broker did not take in time.
        refused: messages that were refused, by reason.
    """

    agent: str
    machine: str
    since: float
    version: str
    lost: int
    refused: dict[str, int]


@dataclass(frozen=True, slots=True)
class PortRecord:
    """A port of a VmRecord.

    Attributes:
        name: PORT.
        console: hvcN, or "".
        aliases: its other names.
        guest_open: whether the guest has it open.
        clients: how many are connected on the host; None if nobody knows.
        max_clients: how many may be.
        published: whether its output goes to the stream all the time.
        error: why the agent does not read it; "" if it does, or need not.
    """

    name: str
    console: str
    aliases: list[str]
    guest_open: bool
    clients: int | None
    max_clients: int
    published: bool
    error: str


@dataclass(frozen=True, slots=True)
class VmRecord:
    """What an agent says of a VM."""

    agent: str
    user: str
    ports: list[PortRecord]


Record = TypeVar("Record", HostRecord, PortRecord)
_MEMBERS = {kind: itemgetter(*(field.name for field in fields(kind))) for kind in (HostRecord, PortRecord)}
_KINDS: Final[Mapping[type, Sequence[type | UnionType]]] = {
    HostRecord: (str, str, int | float, str, int, dict),
    PortRecord: (str, str, list, bool, int | None, int, bool, str),
}
"""What each member is in JSON, in the order of the fields."""


def _read(kind: type[Record], value: Any) -> Record:  # noqa: ANN401  # a JSON value
    try:
        members = _MEMBERS[kind](value)
    except (KeyError, TypeError) as error:
        raise PeerError(f"not a {kind.__name__}: {value!r:.80}") from error
    if not all(map(isinstance, members, _KINDS[kind])):
        raise PeerError(f"not a {kind.__name__}: {value!r:.80}")
    return kind(*members)


def read_host(data: bytes) -> HostRecord:
    """Read a value of the bucket vs_hosts.

    Raises:
        PeerError: it is none.
    """
    record = _read(HostRecord, document(data))
    if not all(isinstance(count, int) for count in record.refused.values()):
        raise PeerError(f"not a HostRecord: {record.refused!r:.80}")
    return record


def read_vm(data: bytes) -> VmRecord:
    """Read a value of the bucket vs_ports.

    Raises:
        PeerError: it is none.
    """
    value = document(data)
    ports = value.get("ports")
    if not isinstance(ports, list):
        raise PeerError(f"not a VmRecord: {value!r:.80}")
    record = VmRecord(str(value.get("agent")), str(value.get("user")), [_read(PortRecord, port) for port in ports])
    if not all(isinstance(alias, str) for port in record.ports for alias in port.aliases):
        raise PeerError(f"not a VmRecord: {value!r:.80}")
    return record


def write(record: HostRecord | VmRecord | dict[str, Any]) -> bytes:
    """Write a record, a request or an answer."""
    value = record if isinstance(record, dict) else asdict(record)
    return json.dumps(value, separators=(",", ":")).encode()


def document(data: bytes) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        PeerError: it is none.
    """
    try:
        value = json.loads(data[: MAX_RECORD + 1])
    except (ValueError, RecursionError) as error:
        raise PeerError(f"not JSON: {data[:40]!r}") from error
    if not isinstance(value, dict):
        raise PeerError(f"not a JSON object: {data[:40]!r}")
    return value
