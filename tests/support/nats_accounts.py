"""An operator, accounts and users of NATS, by JWT, as `nsc` makes them; and the files of credentials."""

from __future__ import annotations

import base64
import json
import os
import time

import nkeys

NO_LIMITS = dict.fromkeys(
    ("subs", "data", "payload", "imports", "exports", "conn", "leaf", "mem_storage", "disk_storage", "streams",
     "consumer"), -1,
)  # fmt: skip


class Key:
    def __init__(self, prefix):
        self.seed = nkeys.encode_seed(os.urandom(32), prefix)
        self._pair = nkeys.from_seed(bytearray(self.seed))
        self.public = self._pair.public_key.decode()

    def sign(self, subject, name, content):
        """A JWT about a key."""
        header = {"typ": "JWT", "alg": "ed25519-nkey"}
        claims = {"jti": os.urandom(8).hex(), "iat": int(time.time()), "iss": self.public, "name": name,
                  "sub": subject.public, "nats": {"version": 2, **content}}  # fmt: skip
        body = ".".join(_encoded(json.dumps(part).encode()) for part in (header, claims))
        return f"{body}.{_encoded(self._pair.sign(body.encode()))}"


def _encoded(data):
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


class Operator:
    def __init__(self, folder, *accounts):
        self._folder = folder
        self._key = Key(nkeys.PREFIX_BYTE_OPERATOR)
        self._accounts = {name: Key(nkeys.PREFIX_BYTE_ACCOUNT) for name in (*accounts, "SYS")}

    @property
    def configuration(self):
        """What servers need of it."""
        own = self._key.sign(self._key, "operator", {"type": "operator"})
        lines = []
        for name, key in self._accounts.items():
            limits = {**NO_LIMITS, "wildcards": True}
            if name == "SYS":
                limits |= {"mem_storage": 0, "disk_storage": 0}
            jwt = self._key.sign(key, name, {"type": "account", "limits": limits, "default_permissions": {}})
            lines.append(f"  {key.public}: {jwt}")
        preload = "\n".join(lines)
        system = self._accounts["SYS"].public
        return f"operator: {own}\nsystem_account: {system}\nresolver: MEMORY\nresolver_preload {{\n{preload}\n}}\n"

    def credentials(self, account, name, permissions=None):
        """Write a user's file of credentials; return its path."""
        key = Key(nkeys.PREFIX_BYTE_USER)
        content = {"type": "user", "subs": -1, "data": -1, "payload": -1, "pub": {}, "sub": {}}
        if permissions is not None:
            content |= {"pub": permissions["publish"], "sub": permissions["subscribe"]}
            if permissions.get("allow_responses"):
                content["resp"] = {"max": 1, "ttl": 120_000_000_000}
        jwt = self._accounts[account].sign(key, name, content)
        path = self._folder / f"{name}.creds"
        path.write_text(
            f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{key.seed.decode()}\n------END USER NKEY SEED------\n"
        )
        path.chmod(0o600)
        return path
