"""Who may do what in a fleet: the broker's permissions by subject, for users of an account.

| role | may |
|---|---|
| agent | bring one host into the fleet, and nothing in the place of another host |
| watch | list the fleet, and read published output |
| type | also have sessions: console, pipe, ssh, send |
| operate | also restart devices, plug and unplug ports |

A tenant is an account: the broker shows it nothing of another's.  Two rights are wider than they look, and agents see
to both:

* Whoever creates a consumer names the subject that it delivers to, without a right to publish there.  So a stored
  message, with headers of another agent's, could come as a request.  It keeps its own subject: agents compare that.
* Whoever asks names the subject of the answer, and an agent may answer anywhere.  So an answer could go to another
  port's output, or to the broker's own interface.  Agents answer at inboxes only.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from virtserial.errors import ConfigError
from virtserial.fleet.protocol import HOSTS, INBOX, OWNERS, PORTS, STREAM, is_inbox, token

if TYPE_CHECKING:
    from collections.abc import Mapping

ROLES: Final = ("agent", "watch", "type", "operate")
_API: Final = "$JS.API"
_LIST: Final = [f"{_API}.CONSUMER.CREATE.KV_{bucket}.*.$KV.{bucket}.>" for bucket in (HOSTS, PORTS)]
_FLOW: Final = "$JS.FC.>"


def permissions(role: str, place: str = "", inbox: str = INBOX) -> Mapping[str, object]:
    """Return a role's permissions, as nats-server's configuration and JWTs have them.

    Args:
        role: one of ROLES.
        place: HOST for an agent, whose it is; HOST or HOST/VM for the others, "" for all.
        inbox: the prefix of subjects for answers, one of its own for each user; it begins with _INBOX.

    Raises:
        ConfigError: no such role, another inbox, or an agent without a host.
    """
    if not is_inbox(inbox):
        raise ConfigError(f"an inbox begins with {INBOX}, and {inbox!r} does not: agents answer nowhere else")
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


def configuration(role: str, place: str = "", inbox: str = INBOX) -> str:
    """Return a role's permissions as a part of nats-server's configuration; see permissions()."""
    return f"permissions: {json.dumps(permissions(role, place, inbox), indent=2)}\n"
