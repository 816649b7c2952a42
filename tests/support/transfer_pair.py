"""A sender and a receiver in one process, joined by bytes that a test may cut, and a sender that a test speaks for."""

from __future__ import annotations

from virtserial.guest.files import messages as wire
from virtserial.guest.files.receiver import Receiver
from virtserial.guest.files.sender import Sender
from virtserial.guest.files.source import walk
from virtserial.guest.files.target import Target
from virtserial.guest.link import Established, Link, Lost, Message


class Transfer:
    """Sends `paths` to `folder`; `turn()` moves at most `piece` bytes each way."""

    def __init__(self, paths, folder, **more):
        self.complaints = {"sender": [], "receiver": []}
        self.links = {"sender": Link(Sender.purpose), "receiver": Link(Receiver.purpose)}
        self.target = Target(str(folder), more.pop("all_links", False))
        self.moved = 0
        self._connected = False
        self.now = 0.0
        self._arguments = [str(path) for path in paths]
        self.parties = {
            "receiver": Receiver(self.target, self.links["receiver"], self.complaints["receiver"].append, **more)
        }
        self.start_sender()

    def start_sender(self):
        """A sender, also one that is started again."""
        if "sender" in self.parties:
            self.parties["sender"].close()
        complain = self.complaints["sender"].append
        self.links["sender"] = Link(Sender.purpose)
        self.parties["sender"] = Sender(walk(self._arguments, complain), self.links["sender"], complain)

    def connect(self):
        self._connected = True
        for link in self.links.values():
            link.connected(self.now)

    def cut(self):
        """The connection ends, with what was under way, and begins again."""
        for name, link in self.links.items():
            self.handle(name, link.disconnected())
        self.connect()

    def handle(self, name, events):
        party = self.parties[name]
        for event in events:
            if isinstance(event, Message):
                party.message(event.kind, event.payload)
            elif isinstance(event, Established):
                party.established()
            elif isinstance(event, Lost):
                party.lost()

    def turn(self, piece=1 << 16):
        """Whether anything moved."""
        worked = False
        for name, other in (("sender", "receiver"), ("receiver", "sender")):
            if not self.parties[name].finished:
                worked = self.parties[name].pump() or worked
            data = b"".join(bytes(buffer) for buffer in self.links[name].data_to_send())[:piece]
            if data:
                self.links[name].sent(len(data))
                self.moved += len(data)
                self.handle(other, self.links[other].receive(data, self.now))
                worked = True
        return worked

    def wait(self):
        """Nothing moves: let time pass until something is due; whether it made anything move."""
        for _ in range(5):
            self.now += 1.0
            for name, link in self.links.items():
                if link.timer() is not None and link.timer() <= self.now:
                    self.handle(name, link.handle_timer(self.now))
            if self.turn():
                return True
        return False

    def run(self):
        """To the end, from a connection that there is or a new one."""
        if not self._connected:
            self.connect()
        while self.turn() or self.wait():
            pass
        assert self.parties["sender"].finished
        assert self.parties["receiver"].finished
        return self.parties["receiver"].result

    def close(self):
        for party in self.parties.values():
            party.close()
        self.target.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class SpokenSender:
    """A receiver whose sender a test speaks for, message by message; `answers` are what it says."""

    def __init__(self, folder, **more):
        self.complaints = []
        self.answers = []
        self.target = Target(str(folder), more.pop("all_links", False))
        self.receiver = Receiver(self.target, self, self.complaints.append, **more)
        self.receiver.established()

    def send(self, kind, *parts):
        """The receiver's link."""
        self.answers.append((kind, b"".join(bytes(part) for part in parts)))

    def entry(self, *fields, **more):
        self.receiver.message(wire.ENTRY, wire.Entry(*fields, **more).pack())

    def say(self, kind, payload=b""):
        self.receiver.message(kind, payload)

    def file(self, number, path, content, digest, **more):
        """A whole file, announced and sent."""
        self.entry(number, wire.FILE, path, size=len(content), **more)
        if content:
            self.say(wire.DATA, wire.pack_position(number, 0) + content)
        self.say(wire.END, wire.pack_end(number, digest, ""))

    @property
    def done(self):
        """(number, reason) of every DONE."""
        return [wire.unpack_done(payload) for kind, payload in self.answers if kind == wire.DONE]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.receiver.close()
        self.target.close()
