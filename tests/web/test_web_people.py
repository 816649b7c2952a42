"""The file of users: roles, patterns, tokens; what is refused; and that changes count at once."""

from __future__ import annotations

import os

import pytest

from virtserial.errors import ConfigError
from virtserial.web.people import People, Role, User, new_token
from virtserial.web.rates import MAX_KEYS, Rate


def write(folder, text, mode=0o600):
    path = folder / "users.toml"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize(
    ("role", "ports", "wanted", "port", "may"),
    [
        (Role.WATCH, ("*",), Role.WATCH, "alpha/hvc0", True),
        (Role.WATCH, ("*",), Role.TYPE, "alpha/hvc0", False),
        (Role.TYPE, ("alpha/*",), Role.TYPE, "alpha/hvc0", True),
        (Role.TYPE, ("alpha/*",), Role.TYPE, "alphabet/hvc0", False),
        (Role.TYPE, ("alpha/*",), Role.PLUG, "alpha/*", False),
        (Role.PLUG, ("alpha/*",), Role.PLUG, "alpha/*", True),
        (Role.PLUG, ("alpha/hvc?",), Role.PLUG, "alpha/*", False),
        (Role.PLUG, ("alpha/?",), Role.PLUG, "alpha/*", False),
        (Role.PLUG, ("alpha/hvc*",), Role.PLUG, "alpha/*", False),
        (Role.PLUG, ("alpha*",), Role.PLUG, "alpha/*", True),
        (Role.PLUG, ("?",), Role.PLUG, "*", False),
        (Role.PLUG, (), Role.WATCH, "alpha/hvc0", False),
    ],
)
def test_rights_are_a_role_and_patterns(role, ports, wanted, port, may):
    assert User("a", role, ports).may(wanted, port) is may


def test_a_file_is_read_again_when_it_changes(folder):
    token, digest = new_token()
    path = write(folder, f'[alice]\nrole = "type"\ntoken = "{digest}"\n["*"]\nrole = "watch"\n')
    people = People(path)
    assert people.of_token(token) == people.named("alice") == User("alice", Role.TYPE, ("*",), digest)
    assert people.of_token("") is people.of_token(digest) is None
    assert people.named("bob") == User("bob", Role.WATCH)
    assert people.named("*").role is Role.WATCH
    write(folder, '[alice]\nrole = "watch"\nports = ["a/*"]\n')
    people.reload()
    assert people.named("alice") == User("alice", Role.WATCH, ("a/*",))
    assert people.of_token(token) is people.named("bob") is None
    os.unlink(path)
    with pytest.raises(ConfigError):
        people.reload()
    assert people.named("alice") is None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('[alice]\nrole = "boss"', "role is 'boss'; it must be watch, type or plug"),
        ("[alice]", "role is None"),
        ('[alice]\nrole = "type"\ntoken = "secret"', "token is not sha256:HASH"),
        ('[alice]\nrole = "type"\nports = "*"', "ports is not a list of patterns"),
        ('[alice]\nrole = "type"\nport = ["*"]', "port is unknown"),
        ('alice = "type"', "no table"),
        (f'["*"]\nrole = "watch"\ntoken = "sha256:{"0" * 64}"', "everybody has no token"),
        ("[alice", "users.toml: "),
    ],
)
def test_what_is_wrong_with_a_file_is_said(folder, text, complaint):
    with pytest.raises(ConfigError) as caught:
        People(write(folder, text))
    assert complaint in str(caught.value)


@pytest.mark.parametrize("mode", [0o604, 0o620, 0o602, 0o640 | 0o004])
def test_a_file_that_others_read_or_write_is_refused(folder, mode):
    with pytest.raises(ConfigError, match="chmod 600"):
        People(write(folder, '[alice]\nrole = "type"', mode))


def test_a_rate_has_a_burst_then_its_pace_and_forgets_the_oldest():
    clock = [0.0]
    rate = Rate(3, 2, lambda: clock[0])
    assert [rate.allows("a") for _ in range(4)] == [True, True, True, False]
    assert rate.allows("b")
    clock[0] = 1.0
    assert [rate.allows("a") for _ in range(3)] == [True, True, False]
    for number in range(2 * MAX_KEYS):
        rate.allows(str(number))
    assert len(rate._buckets) == MAX_KEYS
