"""Tenants, roles, credentials and TLS: what a user without rights sees and may do, at a broker with all of them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import json
import socket
import subprocess
import sys
import threading
import time

import pytest
from nats.js.api import AckPolicy, ConsumerConfig
from support.broker import Broker
from support.certificates import Authority
from support.fleet_host import FleetHost
from support.nats_accounts import Operator
from support.places import ENVIRONMENT
from support.waiting import wait_until

from virtserial.errors import ConfigError, PeerError
from virtserial.fleet.broker import connect, load_settings, set_up
from virtserial.fleet.protocol import SESSION, write
from virtserial.fleet.roles import configuration, permissions
from virtserial.fleet.session import ask
from virtserial.fleet.stream import FleetStream

WAIT = 60
HEADERS = {SESSION: "s" * 32}


@pytest.fixture(scope="module")
def tenants(module_folder):
    """A broker with TLS, and the tenants red and blue; `file(tenant, role)` is a user's file for the fleet."""
    authority = Authority(module_folder / "ca", "authority")
    keys = authority.issue(module_folder / "tls", "server")
    operator = Operator(module_folder, "red", "blue")
    tls = f'tls {{ cert_file: "{keys}/server-cert.pem", key_file: "{keys}/server-key.pem" }}\n'
    broker = Broker(module_folder / "broker", accounts=tls + operator.configuration, scheme="tls")

    def file(tenant, role, place=""):
        name = f"{tenant}-{role}"
        inbox = f"_INBOX_{role}"
        rights = permissions(role, place, inbox) if role != "admin" else None
        creds = operator.credentials(tenant, name, rights)
        return broker.file(name, creds=str(creds), ca=authority.certificate, inbox=inbox)

    yield file
    broker.stop()


@pytest.fixture(scope="module")
def red(module_folder, tenants):
    """Host h1 with the VM alpha, both of the tenant red; its agent has no other right than an agent's."""

    async def set_up_all():
        for tenant in ("red", "blue"):
            async with await connect(load_settings(str(tenants(tenant, "admin"))), "test", print) as client:
                await set_up(client, memory=True, size=16 << 20)

    asyncio.run(set_up_all())
    with FleetHost(module_folder, tenants("red", "watch"), setup=None) as host:
        host.join("--publish", "alpha/many", file=tenants("red", "agent", "h1"))
        yield host


def test_a_typist_has_a_session_and_a_watcher_has_not(red, tenants):
    with red.guest("many") as guest, red.guest("org.example.0") as other:
        guest.write(b"published\n", WAIT)
        with FleetStream(load_settings(str(tenants("red", "type"))), "h1/alpha/org.example.0") as stream:
            stream.write(b"typed\n", WAIT)
            assert other.readline(WAIT) == b"typed\n"
            other.write(b"answered\n", WAIT)
            assert stream.readline(WAIT) == b"answered\n"
        watcher = load_settings(str(tenants("red", "watch")))
        with FleetStream(watcher, "h1/alpha/many", only_watch=True, history=True) as stream:
            assert stream.readline(WAIT) == b"published\n"
        with pytest.raises(PeerError, match="or we may not do this"):
            FleetStream(watcher, "h1/alpha/many")


def test_another_tenant_sees_nothing(red, tenants):
    red.file = tenants("blue", "operate")
    try:
        assert red.listed().hosts() == {}
    finally:
        red.file = tenants("red", "watch")
    with pytest.raises(ConfigError, match="no host called 'h1' is in the fleet"):
        FleetStream(load_settings(str(tenants("blue", "operate"))), "h1/alpha/many")
    assert heard_by(tenants("blue", "admin"), lambda: say_something(red)) == []
    assert heard_by(tenants("red", "admin"), lambda: say_something(red), WAIT) != []


def test_the_end_of_a_connection_is_no_news(red):
    """asyncio warned of each end of TLS, in every command's error output."""
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-m", "virtserial", "fleet", "ls"], env=ENVIRONMENT | {"VIRTSERIAL_FLEET": str(red.file)},
            capture_output=True, text=True, timeout=WAIT,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert "h1/alpha" in done.stdout


def say_something(host):
    with host.guest("many") as guest:
        guest.write(b"a secret\n", WAIT)


def heard_by(file, action, patience=1):
    """The subjects of all messages that a user gets who listens to everything, and so long to the first."""

    async def listen():
        heard = []
        async with await connect(load_settings(str(file)), "test", print) as client:
            subscription = await client.subscribe("vs.>")
            await client.flush()
            await asyncio.to_thread(action)
            with contextlib.suppress(Exception):
                while True:
                    heard.append((await subscription.next_msg(1 if heard else patience)).subject)
        return heard

    return asyncio.run(listen())


@pytest.mark.parametrize(("role", "may"), [("type", False), ("operate", True)])
def test_only_an_operator_restarts_devices(red, tenants, role, may):
    async def restart():
        async with await connect(load_settings(str(tenants("red", role))), "test", lambda _: None) as client:
            return await ask(client, "vs.h1.alpha.restart", {"keeper": False}, 3, HEADERS)

    if may:
        assert asyncio.run(restart()) == {}
    else:
        with pytest.raises(PeerError):
            asyncio.run(restart())


def test_an_agent_speaks_for_its_own_host_only(red, tenants):
    said = []

    async def lie():
        async with await connect(load_settings(str(tenants("red", "agent", "h7"))), "test", said.append) as client:
            for subject in ("$KV.vs_hosts.h1", "$KV.vs_ports.h1.alpha", "vs.h1.alpha.many.out"):
                await client.publish(subject, write({"agent": "liar"}))
            await client.flush()
            for _ in range(600):
                if len(violations()) == 3:
                    break
                await asyncio.sleep(0.1)

    def violations():
        return [line for line in said if "permissions violation" in line]

    before = red.listed().hosts()["h1"].agent
    asyncio.run(lie())
    assert len(violations()) == 3, said
    assert red.listed().hosts()["h1"].agent == before


def test_an_agent_answers_at_inboxes_only(red, tenants):
    """Else whoever may type into one port has an agent's rights: the broker lets it answer anywhere."""
    elsewhere = ("vs.h1.alpha.many.out", "$JS.API.STREAM.PURGE.vs_out", "$KV.vs_hosts.h9")

    async def ask_for_answers_elsewhere():
        async with await connect(load_settings(str(tenants("red", "type"))), "test", print) as client:
            for reply in elsewhere:
                for verb in ("in", "ctl"):
                    await client.publish(f"vs.h1.alpha.many.{verb}", b"{}", reply=reply, headers=HEADERS)
            await client.flush()

    async def stored():
        async with await connect(load_settings(str(tenants("red", "admin"))), "test", print) as client:
            state = (await client.jetstream().stream_info("vs_out")).state
            return state.messages, state.last_seq

    _, last = asyncio.run(stored())
    say_something(red)
    wait_until(lambda: asyncio.run(stored())[1] > last, WAIT)
    before = asyncio.run(stored()), garbage(red)
    asyncio.run(ask_for_answers_elsewhere())
    wait_until(lambda: garbage(red) == before[1] + 2 * len(elsewhere), WAIT, step=0.5)
    assert asyncio.run(stored()) == before[0]
    assert list(red.listed().hosts()) == ["h1"]


def garbage(host):
    """How many requests the host says it has refused as garbage."""
    return host.listed().hosts()["h1"].refused.get("garbage", 0)


def test_what_another_agent_stored_is_no_request(red, tenants):
    """A user who watches has a message of another host delivered as a request to this one.

    nats-server does so as soon as anybody listens to just that subject, without a wildcard.
    """
    request = {**HEADERS, "Vs-At": "a 0"}

    async def deliver():
        async with await connect(load_settings(str(tenants("red", "admin"))), "test", print) as listener:
            await listener.subscribe("vs.h1.alpha.many.ctl")
            await listener.flush()
            await trick()

    async def trick():
        async with await connect(load_settings(str(tenants("red", "agent", "h8"))), "test", print) as client:
            await client.jetstream().publish("vs.h8.alpha.many.out", write({"do": "open"}), headers=request)
        async with await connect(load_settings(str(tenants("red", "watch"))), "test", print) as client:
            config = ConsumerConfig(
                name="trick", deliver_subject="vs.h1.alpha.many.ctl", filter_subject="vs.h8.alpha.many.out",
                ack_policy=AckPolicy.NONE, mem_storage=True,
            )  # fmt: skip
            await client.jetstream().add_consumer("vs_out", config)
            await asyncio.to_thread(wait_until, lambda: garbage(red) > before, WAIT)

    before = garbage(red)
    asyncio.run(deliver())


def test_wrong_credentials_and_unknown_certificates_are_said(red, tenants, module_folder):
    settings = load_settings(str(tenants("red", "watch")))
    stranger = Operator(module_folder, "red").credentials("red", "stranger")
    with pytest.raises(ConfigError, match="the broker refuses us: nats: 'Authorization Violation'"):
        asyncio.run(connect(dataclasses.replace(settings, creds=str(stranger)), "test", print, 5))
    with pytest.raises(PeerError, match=r"no broker answers at tls://127.*certificate verify failed"):
        asyncio.run(connect(dataclasses.replace(settings, ca=""), "test", lambda _: None, 2))


@contextlib.contextmanager
def late_goodbye(server):
    """The address of a relay to a server, by which the end of a connection comes 0.3 s late."""

    def relay(client):
        with client, socket.create_connection(server) as broker:
            copy = threading.Thread(target=pass_on, args=(client, broker))
            copy.start()
            pass_on(broker, client)
            time.sleep(0.3)
            client.shutdown(socket.SHUT_RDWR)
            copy.join()

    def pass_on(source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)

    def serve():
        with contextlib.suppress(OSError):
            while True:
                relays.append(threading.Thread(target=relay, args=(listener.accept()[0],)))
                relays[-1].start()

    relays = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=serve)
        accepting.start()
        yield f"tls://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join()
    for each in relays:
        each.join()


def test_a_refused_connection_is_closed_to_its_end(red, tenants, module_folder):
    settings = load_settings(str(tenants("red", "watch")))
    stranger = Operator(module_folder, "red").credentials("red", "stranger")
    host, _, port = settings.servers[0].removeprefix("tls://").partition(":")
    with late_goodbye((host, int(port))) as address:
        settings = dataclasses.replace(settings, servers=(address,), creds=str(stranger))
        with pytest.raises(ConfigError, match="the broker refuses us: nats: 'Authorization Violation'"):
            asyncio.run(connect(settings, "test", pytest.fail, 5))
        # What asyncio still had open would be reported here, as a ResourceWarning.
        gc.collect()


def test_a_password_that_others_may_read_is_refused(tmp_path):
    file = tmp_path / "fleet.toml"
    file.write_text('servers = ["nats://x"]\nuser = "u"\npassword = "p"\n')
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="it has a password, and others may read it"):
        load_settings(str(file))
    file.chmod(0o600)
    assert load_settings(str(file)).password == "p"
    secret = tmp_path / "fleet.creds"
    secret.write_text("seed")
    secret.chmod(0o644)
    file.write_text('servers = ["nats://x"]\ncreds = "fleet.creds"\n')
    with pytest.raises(ConfigError, match="everybody may read or change it"):
        load_settings(str(file))
    secret.chmod(0o640)
    assert load_settings(str(file)).creds == str(secret)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("servers = 1", "servers is a list"), ("servers = []", "servers is a list"), ("x", "fleet.toml"),
     ('servers = ["a"]\nwrong = 1', "there is no key 'wrong'"),
     ('servers = ["a"]\ninbox = "mine"', "inbox begins with _INBOX"),
     ('servers = ["a"]\ncreds = 1', "creds is no text")],
)  # fmt: skip
def test_mistakes_in_the_file_are_said(tmp_path, text, complaint):
    (tmp_path / "fleet.toml").write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        load_settings(str(tmp_path / "fleet.toml"))


def test_a_role_is_a_part_of_a_configuration(folder):
    text = configuration("operate", "h1/alpha")
    assert "vs.h1.alpha.restart" in text
    assert json.loads(text.partition(":")[2])["subscribe"] == {"allow": ["_INBOX.>"]}
    accounts = f'accounts {{ A {{ jetstream: enabled, users: [ {{ user: u, password: p, {text} }} ] }} }}\n'
    broker = Broker(folder / "broker", accounts=accounts)
    try:
        file = broker.file(user="u", password="p")

        async def look():
            async with await connect(load_settings(str(file)), "test", print) as client:
                return client.is_connected

        assert asyncio.run(look())
    finally:
        broker.stop()
    for wrong in (("agent", ""), ("agent", "h1/alpha"), ("king", "")):
        with pytest.raises(ConfigError):
            permissions(*wrong)


def test_nothing_was_lost(red):
    wait_until(lambda: red.listed().hosts()["h1"].lost == 0)
