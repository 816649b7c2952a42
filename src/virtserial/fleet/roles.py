"""Who may do what in a fleet: the broker's permissions by subject, for users of an account.

| role | may |
|---|---|
| agent | bring one host into the fleet, and nothing in the place of another host |
| watch | list the fleet, and read published output |
| type | also have sessions: console, pipe, ssh, send |
| operate | also restart devices, plug and unplug ports |

A tenant is an account: the broker shows it nothing of another's.  Whoever creates a consumer names the subject that it
delivers to, without a right to publish there.  So stored output could come as a request: that is why agents ask for
the header Vs-Session in every request, which output has not.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from virtserial.errors import ConfigError
from virtserial.fleet.protocol import HOSTS, OWNERS, PORTS, STREAM, token

if TYPE_CHECKING:
    from collections.abc import Mapping

ROLES: Final = ("agent", "watch", "type", "operate")
_API: Final = "$JS.API"
_LIST: Final = [f"{_API}.CONSUMER.CREATE.KV_{bucket}.*.$KV.{bucket}.>" for bucket in (HOSTS, PORTS)]
_FLOW: Final = "$JS.FC.>"


def permissions(role: str, place: str = "", inbox: str = "_INBOX") -> Mapping[str, object]:
    """Return a role's permissions, as nats-server's configuration and JWTs have them.

    Args:
        role: one of ROLES.
        place: HOST for an agent, whose it is; HOST or HOST/VM for the others, "" for all.
        inbox: the prefix of subjects for answers, one of its own for each user.

    Raises:
        ConfigError: no such role, or an agent without a host.
    """
    if role not in ROLES:
        raise ConfigError(f"there is no role {role!r}", f"there are {', '.join(ROLES)}")
    host, _, vm = place.partition("/")
    at = [token(host) if host else "*", token(vm) if vm else "*"]
    if role == "agent":
        if not host or vm:
            raise ConfigError("an agent's place is its HOST")
        subscribe = [f"{inbox}.>", f"vs.{at[0]}.>"]
        publish = [
            *_LIST, _FLOW, f"{_API}.STREAM.INFO.{STREAM}",
            *(f"{_API}.STREAM.INFO.KV_{bucket}" for bucket in (HOSTS, PORTS, OWNERS)),
            *(f"{_API}.STREAM.MSG.GET.KV_{bucket}" for bucket in (HOSTS, OWNERS)),
            f"vs.{at[0]}.*.*.out", f"$KV.{HOSTS}.{at[0]}", f"$KV.{PORTS}.{at[0]}.*", f"$KV.{OWNERS}.{at[0]}.>",
        ]  # fmt: skip
        return {"publish": {"allow": publish}, "subscribe": {"allow": subscribe}, "allow_responses": True}
    subject = ".".join(["vs", *at])
    publish = [*_LIST, _FLOW, f"{_API}.CONSUMER.CREATE.{STREAM}.*.{subject}.>"]
    if role != "watch":
        publish += [f"{subject}.*.in", f"{subject}.*.ctl"]
    if role == "operate":
        publish += [f"{subject}.{verb}" for verb in ("restart", "plug", "unplug")]
    return {"publish": {"allow": publish}, "subscribe": {"allow": [f"{inbox}.>"]}}


def configuration(role: str, place: str = "", inbox: str = "_INBOX") -> str:
    """Return a role's permissions as a part of nats-server's configuration; see permissions()."""
    return f"permissions: {json.dumps(permissions(role, place, inbox), indent=2)}\n"
