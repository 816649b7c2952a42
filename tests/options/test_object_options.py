"""-object tls-creds-x509: texts as QEMU 11.1.3 printed them for the same arguments, but for what only ours refuses."""

import pytest

from virtserial.errors import ConfigError
from virtserial.options.object_options import parse_object


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("foo,id=t", "Parameter 'qom-type' does not accept value 'foo'"),
        ("tls-creds-x509,dir=/d", "Parameter 'id' is missing"),
        ("tls-creds-x509,id=t", "Missing 'dir' property value"),
        ("tls-creds-x509,id=t,dir=/d,endpoint=both", "Parameter 'endpoint' does not accept value 'both'"),
        ("tls-creds-x509,id=t,dir=/d,foo=1", "Invalid parameter 'foo'"),
        ("tls-creds-x509,id=t,dir=/d,verify-peer=maybe", "Parameter 'verify-peer' expects 'on' or 'off'"),
        ("tls-creds-x509,id=taken,dir=/d", "Duplicate ID 'taken' for object"),
        (
            "tls-creds-x509,id=t,dir=/no/dir",
            "Unable to access credentials /no/dir/ca-cert.pem: No such file or directory",
        ),
        ("tls-creds-x509,id=t,dir=/d,passwordid=s", "'passwordid' is not supported by virtserial"),
        ("tls-creds-x509,id=t,dir=/d,priority=NORMAL", "'priority' is not supported by virtserial"),
        ('{"id":"t"}', "Parameter 'qom-type' is missing"),
    ],
)
def test_refused(text, message):
    with pytest.raises(ConfigError) as caught:
        parse_object(text, {"taken"})
    assert str(caught.value) == message
