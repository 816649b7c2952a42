"""The OpenSSL context that TLS credentials make: the keeper checks them by it, the worker serves with it."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from virtserial.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def make_context(params: Mapping[str, object], fds: Sequence[int]) -> ssl.SSLContext:
    """Make the context that `TlsCredentials.params` describes; its files are indices into `fds`.

    Raises:
        BackendError: the files are no certificates or keys, or do not go together.
    """
    server, verify = bool(params["server"]), bool(params["verify"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.check_hostname = verify and not server and params["hostname"] is not None
    context.verify_mode = ssl.CERT_REQUIRED if verify else ssl.CERT_NONE

    def path(role: str) -> str | None:
        index = params.get(role)
        return f"/proc/self/fd/{fds[index]}" if isinstance(index, int) else None

    try:
        context.load_verify_locations(path("ca-cert"))
        if (crl := path("ca-crl")) is not None:
            context.load_verify_locations(crl)
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        if (certificate := path("cert")) is not None:
            context.load_cert_chain(certificate, path("key"), password=_no_password)
        if (parameters := path("dh-params")) is not None:
            context.load_dh_params(parameters)
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
