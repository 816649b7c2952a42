"""The OpenSSL context that TLS credentials make: the keeper checks them by it, the worker serves with it."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from virtserial.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.channel.connections import TlsFiles


def make_context(files: TlsFiles, fds: Sequence[int], *, check_hostname: bool) -> ssl.SSLContext:
    """Make the context of one end.

    Args:
        fds: the files.
        check_hostname: a server's certificate must be for the host's name, too.

    Raises:
        BackendError: the files are not certificates or keys, or do not go together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if files.server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.check_hostname = check_hostname and files.verify
    context.verify_mode = ssl.CERT_REQUIRED if files.verify else ssl.CERT_NONE
    paths = {role: f"/proc/self/fd/{fd}" for role, fd in zip(files.roles, fds, strict=True)}
    try:
        context.load_verify_locations(paths["ca-cert"])
        if "ca-crl" in paths:
            context.load_verify_locations(paths["ca-crl"])
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        if "cert" in paths:
            context.load_cert_chain(paths["cert"], paths.get("key"), password=_no_password)
        if "dh-params" in paths:
            context.load_dh_params(paths["dh-params"])
    except (OSError, ValueError) as error:
        raise BackendError(f"TLS credentials: {reason_of(error)}") from error
    return context


def _no_password() -> str:
    """OpenSSL would ask at the terminal."""
    raise ValueError("the key is encrypted")


def reason_of(error: Exception) -> str:
    """What OpenSSL says, without its codes and source lines."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return str(error.verify_message)
    return str(getattr(error, "reason", None) or error).lower().replace("_", " ")
