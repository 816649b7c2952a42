"""Our device behind a vhost-user front end."""

from __future__ import annotations

from virtserial.conformance.vhost_user_vmm import FrontEndVmm
from virtserial.testing.hostile.over_vfio_user import ServedMachine


class VhostUserMachine(ServedMachine):
    """The attacked controller has a vhost-user front."""

    def __init__(self) -> None:
        super().__init__("vhost-user", "vhost-user-serial,packed=on", FrontEndVmm)
