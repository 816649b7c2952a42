"""Where the web console listens: what would give consoles to everybody is refused, with what is missing."""

from __future__ import annotations

import pytest
from support.programs import run as run_program

from virtserial.errors import ConfigError
from virtserial.web.access import Policy
from virtserial.web.people import People
from virtserial.web.server import Address, check_exposure, parse_listen

SECURE = ("https://console.example.org",)


@pytest.fixture
def people(folder):
    path = folder / "users.toml"
    path.write_text('[alice]\nrole = "type"')
    path.chmod(0o600)
    return People(str(path))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:80", Address("127.0.0.1", 80)),
        ("localhost:80", Address("127.0.0.1", 80)),
        (":80", Address("127.0.0.1", 80)),
        ("[::1]:0", Address("::1", 0)),
        ("unix:/run/x", Address("", 0, "/run/x")),
    ],
)
def test_addresses(text, address):
    assert parse_listen(text) == address
    assert address.is_local


@pytest.mark.parametrize("text", ["", "host:80", "127.0.0.1:", "127.0.0.1:70000", "1.2.3.4:x", "1.2.3:4"])
def test_what_is_no_address(text):
    with pytest.raises(ConfigError):
        parse_listen(text)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_open_to_others_needs_users_and_tls_or_a_proxy(people, host):
    address = Address(host, 443)
    for policy, tls, missing in (
        (Policy(), False, "--users"),
        (Policy(), True, "--users"),
        (Policy(people), True, "--origin"),
        (Policy(people, origins=SECURE), False, "TLS"),
        (Policy(people, origins=("http://a",)), True, "https://"),
        (Policy(people, "X-User", (), SECURE), True, "--proxy"),
        (Policy(None, "X-User", ("10.0.0.1",), SECURE), True, "--users"),
        (Policy(people, "", ("10.0.0.1",), SECURE), True, "--user-header"),
    ):
        with pytest.raises(ConfigError, match=missing):
            check_exposure(address, policy, tls)
    check_exposure(address, Policy(people, origins=SECURE), True)
    check_exposure(address, Policy(people, "X-User", ("10.0.0.1",), SECURE), False)


def test_this_machine_needs_none_of_it(people):
    for address in (Address("127.0.0.1", 1), Address("::1", 1), Address("", 0, "/run/x")):
        check_exposure(address, Policy(), False)
        check_exposure(address, Policy(people), False)
    with pytest.raises(ConfigError, match="--origin needs --users"):
        check_exposure(Address("127.0.0.1", 1), Policy(origins=SECURE), False)


def test_the_command_says_so(folder):
    status, _, complaint = run_program("web", "--listen", "0.0.0.0:0")
    assert (status, "is open to other machines: it needs --users" in complaint) == (1, True)
    status, said, _ = run_program("web", "--new-token")
    assert (status, said.count("sha256:")) == (0, 1)


def test_without_aiohttp_the_command_says_what_it_lacks(folder):
    (folder / "sitecustomize.py").write_text(
        "import importlib.util as u\nreal = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'aiohttp' else real(name, *more)\n"
    )
    from support.places import SOURCE

    status, _, complaint = run_program("web", PYTHONPATH=f"{folder}:{SOURCE}")
    assert status == 1
    assert "pipx inject virtserial aiohttp" in complaint
