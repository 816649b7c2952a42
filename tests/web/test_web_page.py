"""docs/web.md: its commands run as they stand, but for paths, users and port numbers of the test's own."""

from __future__ import annotations

import getpass
import re
import shlex
import ssl

import pytest
from aiohttp import ClientSession, ClientTimeout, TCPConnector, UnixConnector
from support.certificates import Authority
from support.places import ROOT
from support.programs import run as run_program
from support.web_machine import web

from virtserial.web.people import People, Role

PAGE = (ROOT / "docs" / "web.md").read_text()
BLOCKS = "\n".join(re.findall(r"(?:^    .*\n)+", PAGE, re.MULTILINE)).replace(" \\\n", " ")
COMMANDS = [line.strip()[2:].partition("#")[0].split(" ", 1)[1].strip() for line in BLOCKS.splitlines()
            if line.strip().startswith("$ virtserial")]  # fmt: skip
ORIGIN = "https://console.example.org"
TIME = ClientTimeout(20)


@pytest.fixture
def users(folder):
    """The page's file, with a token for alice."""
    status, said, _ = run_program("web", "--new-token")
    assert status == 0
    token = re.search(r"^token for its owner: (\S+)$", said, re.MULTILINE)[1]
    line = re.search(r"^line for the file: +(token = \S+)$", said, re.MULTILINE)[1]
    text = re.search(r"^    (\[alice\]\n(?:    .*\n)+?)    \$", PAGE, re.MULTILINE)[1].replace("\n    ", "\n")
    parts = text.split('token = "sha256:..."\n')
    path = folder / "users.toml"
    path.write_text(parts[0] + line + "\n" + "".join(parts[1:]))
    path.chmod(0o600)
    return path, token


def command(part, **places):
    """The page's command that has `part`, with other places."""
    [found] = [each for each in COMMANDS if part in each]
    words = shlex.split(found)
    assert words.pop(0) == "web"
    return [str(places.get(word, word)) for word in words]


def test_the_commands_are_those_that_are_tried_here():
    assert len(COMMANDS) == 5
    assert [each.split()[0] for each in COMMANDS] == ["web"] * 5


def test_alone(run, folder):
    assert COMMANDS[0] == "web"

    async def check(url):
        async with ClientSession(timeout=TIME) as session, session.get(f"{url}api/me") as answer:
            assert (await answer.json())["user"] == getpass.getuser()

    with web("--listen", "127.0.0.1:0") as (url, _):
        run(check(url))


def test_users_and_their_roles(users):
    people = People(str(users[0]))
    assert people.of_token(users[1]).role is Role.PLUG
    bob = people.named("bob")
    assert bob.role is Role.WATCH
    assert (bob.may(Role.WATCH, "alpha/x"), bob.may(Role.WATCH, "beta/x")) == (True, False)


def test_with_tls(run, folder, users):
    place = Authority(folder / "ca", "tests").issue(folder / "tls", "server", "DNS:console.example.org")
    path, token = users
    words = command(
        "--tls-cert", **{"users.toml": path, "0.0.0.0:443": "0.0.0.0:0", "cert.pem": f"{place}/server-cert.pem",
                         "key.pem": f"{place}/server-key.pem"}
    )  # fmt: skip

    async def check(url):
        context = ssl.create_default_context(cafile=f"{place}/ca-cert.pem")
        port = url.rstrip("/").rpartition(":")[2]
        headers = {"Host": "console.example.org", "Origin": ORIGIN}
        connector = TCPConnector(ssl=context)
        base = f"https://127.0.0.1:{port}"
        async with ClientSession(base, connector=connector, headers=headers, timeout=TIME) as session:
            name = {"server_hostname": "console.example.org"}
            async with session.post("/api/log-in", json={"token": token}, **name) as answer:
                assert answer.status == 200
                assert answer.headers["Strict-Transport-Security"]
                cookie = answer.cookies["__Host-virtserial"]
                assert (cookie["secure"], cookie["httponly"], cookie["samesite"]) == (True, True, "Strict")
            cookies = {"Cookie": f"__Host-virtserial={cookie.value}"}
            async with session.get("/api/me", headers=cookies, **name) as answer:
                assert (await answer.json())["user"] == "alice"
            async with session.get("/", headers={"Host": f"127.0.0.1:{port}"}, **name) as answer:
                assert answer.status == 421

    with web(*words) as (url, _):
        run(check(url))


def test_behind_a_proxy(run, folder, users):
    place = f"{folder}/console.sock"
    words = command("--user-header", **{
        "users.toml": users[0], "unix:/run/console.sock": f"unix:{place}", "www-data": getpass.getuser(),
    })  # fmt: skip

    async def check():
        headers = {"Host": "console.example.org", "Origin": ORIGIN}
        connector = UnixConnector(place)
        async with ClientSession("http://localhost", connector=connector, headers=headers, timeout=TIME) as session:
            for user, role in (("alice", "plug"), ("bob", "watch"), ("eve", None)):
                async with session.get("/api/me", headers={"X-Remote-User": user}) as answer:
                    assert (await answer.json())["role"] == role

    with web(*words):
        run(check())


def test_what_is_refused():
    [said] = [line.strip() for line in BLOCKS.splitlines() if line.strip().startswith("virtserial: ")]
    done = run_program(*["web", *command("--listen 0.0.0.0:8040")])
    assert (done[0], done[2].strip()) == (1, said)


def test_a_second_console_at_the_same_place(folder):
    with web("--listen", f"unix:{folder}/w"):
        status, _, complaint = run_program("web", "--listen", f"unix:{folder}/w")
        assert (status, "Address already in use" in complaint) == (1, True)
