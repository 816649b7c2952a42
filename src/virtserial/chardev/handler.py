"""The name that handlers import their classes by; virtserial.handler defines them."""

from virtserial.handler import Port, PortHandler

__all__ = ["Port", "PortHandler"]
