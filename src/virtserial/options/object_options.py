"""`-object tls-creds-x509,id=ID,...`: objects that chardevs refer to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtserial.errors import ConfigError
from virtserial.options import keyval

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping

    from virtserial.chardev.tls_credentials import TlsCredentials

TLS_CREDS_X509: Mapping[str, Callable[[str, object], object]] = {
    **dict.fromkeys(("dir", "endpoint", "passwordid", "priority"), keyval.to_string),
    **dict.fromkeys(("verify-peer", "sanity-check"), keyval.to_bool),
}


def parse_object(text: str, ids_in_use: Container[str] = ()) -> TlsCredentials:
    """Parse the argument of -object, and read the files that it names.

    Raises:
        ConfigError: in QEMU's words.
    """
    options = keyval.parse_options(text, "qom-type")
    kind, object_id = options.pop("qom-type", None), options.pop("id", None)
    if kind is None:
        raise ConfigError("Parameter 'qom-type' is missing")
    if kind != "tls-creds-x509":
        raise ConfigError(f"Parameter 'qom-type' does not accept value '{kind}'")
    values: dict[str, object] = {}
    for name, value in options.items():
        if name not in TLS_CREDS_X509:
            raise ConfigError(f"Invalid parameter '{name}'", keyval.did_you_mean(name, TLS_CREDS_X509))
        values[name] = TLS_CREDS_X509[name](name, value)
    if object_id is None:
        raise ConfigError("Parameter 'id' is missing")
    object_id = keyval.check_identifier(object_id)
    if object_id in ids_in_use:
        raise ConfigError(f"Duplicate ID '{object_id}' for object")
    return make_tls_credentials(object_id, values)


def make_tls_credentials(object_id: str, values: Mapping[str, object]) -> TlsCredentials:
    """Make a tls-creds-x509 object from checked values by their QEMU names.

    Raises:
        ConfigError: values that exclude each other, missing files, or not valid TLS credentials.
    """
    from virtserial.chardev.tls_credentials import FILES, TlsCredentials

    endpoint = str(values.get("endpoint", "client"))
    if endpoint not in FILES:
        raise ConfigError(f"Parameter 'endpoint' does not accept value '{endpoint}'")
    for name in ("passwordid", "priority"):
        if name in values:
            raise ConfigError(f"'{name}' is not supported by virtserial")
    if "dir" not in values:
        raise ConfigError("Missing 'dir' property value")
    return TlsCredentials.load(object_id, str(values["dir"]), endpoint, bool(values.get("verify-peer", True)))
