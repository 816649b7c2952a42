"""`-object tls-creds-x509`: certificates and keys from a directory, with QEMU's names (crypto/tlscredsx509.c)."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from virtserial.channel.connections import TlsFiles
from virtserial.errors import BackendError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

MAX_FILE = 1 << 20
"""Bytes of one file: certificates and keys are far smaller."""

FILES = {
    # By role, the endpoint's file and whether there has to be one.
    "server": {
        "ca-cert": ("ca-cert.pem", True),
        "ca-crl": ("ca-crl.pem", False),
        "cert": ("server-cert.pem", True),
        "key": ("server-key.pem", True),
        "dh-params": ("dh-params.pem", False),
    },
    "client": {
        "ca-cert": ("ca-cert.pem", True),
        "ca-crl": ("ca-crl.pem", False),
        "cert": ("client-cert.pem", False),
        "key": ("client-key.pem", False),
    },
}


class TlsCredentials(NamedTuple):
    """Read once, when the object is made.  The worker gets them as memory files, because it opens nothing.

    Attributes:
        endpoint: "server" or "client".
        verify_peer: the peer has to show a certificate of the CA, and a server's has to be for its host name.
        contents: the files' bytes by role.
    """

    id: str
    endpoint: str
    verify_peer: bool
    contents: dict[str, bytes]

    @classmethod
    def load(cls, credentials_id: str, directory: str, endpoint: str, verify_peer: bool) -> TlsCredentials:
        """Read the files.

        Raises:
            ConfigError: one is missing or too large, or OpenSSL cannot use them.
        """
        contents = {}
        for role, (name, required) in FILES[endpoint].items():
            path = os.path.join(directory, name)
            try:
                contents[role] = _read(path)
            except FileNotFoundError as error:
                if required:
                    raise ConfigError(f"Unable to access credentials {path}: {error.strerror}") from error
            except OSError as error:
                raise ConfigError(f"Unable to access credentials {path}: {error.strerror}") from error
        credentials = cls(credentials_id, endpoint, verify_peer, contents)
        credentials._check(directory)
        return credentials

    def describe(self) -> dict[str, object]:
        """Return them as JSON can carry them, for `from_description`."""
        contents = {role: content.decode("latin-1") for role, content in self.contents.items()}
        return {"id": self.id, "endpoint": self.endpoint, "verify_peer": self.verify_peer, "contents": contents}

    @classmethod
    def from_description(cls, described: Mapping[str, Any]) -> TlsCredentials:
        """Return the credentials that `describe` described."""
        contents = {role: content.encode("latin-1") for role, content in described["contents"].items()}
        return cls(described["id"], described["endpoint"], described["verify_peer"], contents)

    def check_endpoint(self, server: bool) -> None:
        """
        Raises:
            ConfigError: they are for the other end of a connection.
        """
        wanted = "server" if server else "client"
        if self.endpoint != wanted:
            raise ConfigError(f"Expected TLS credentials for a {wanted} endpoint")

    @property
    def description(self) -> TlsFiles:
        """What the worker has to know beside the files."""
        contents = hash((self.verify_peer, *self.contents.items()))
        context = f"{self.id} {contents:x}"
        return TlsFiles(self.endpoint == "server", self.verify_peer, context, tuple(self.contents))

    def open_files(self) -> list[int]:
        """Return a memory file for each role, in the order of `description`."""
        fds: list[int] = []
        for role, content in self.contents.items():
            fd = os.memfd_create(f"virtserial {role}", os.MFD_CLOEXEC)
            os.write(fd, content)
            fds.append(fd)
        return fds

    def _check(self, directory: str) -> None:
        """Have OpenSSL load them in a child process: the keeper does without OpenSSL and its memory."""
        ours, theirs = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.write(theirs, self._complaint().encode()[:1000])
            finally:
                os._exit(0)
        os.close(theirs)
        with open(ours, "rb") as answer:
            complaint = answer.read().decode()
        os.waitpid(pid, 0)
        if complaint:
            raise ConfigError(f"{directory}: {complaint}")

    def _complaint(self) -> str:
        from virtserial.channel.tls_context import make_context

        fds = self.open_files()
        try:
            make_context(self.description, fds, check_hostname=False)
        except BackendError as error:
            return str(error)
        finally:
            for fd in fds:
                os.close(fd)
        return ""


def _read(path: str) -> bytes:
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        # A FIFO that nobody writes would hold the keeper.
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ConfigError(f"Unable to access credentials {path}: not a regular file")
        content = file.read(MAX_FILE + 1)
    if len(content) > MAX_FILE:
        raise ConfigError(f"Unable to access credentials {path}: larger than {MAX_FILE} bytes")
    return content
