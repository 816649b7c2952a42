"""What a directory keeps of the records that agents announce; without a broker."""

from __future__ import annotations

from virtserial.fleet import directory as directories
from virtserial.fleet.directory import Directory
from virtserial.fleet.protocol import HOSTS, PORTS, HostRecord, VmRecord, write
from virtserial.fleet.reader import Stored


def test_a_host_has_a_bounded_number_of_vms_and_more_are_left_out_and_said_once(monkeypatch, caplog):
    monkeypatch.setattr(directories, "MAX_VMS", 3)
    directory = Directory(None)

    def take(subject, value, headers=None):
        directory._take(Stored(f"$KV.{subject}", headers or {}, write(value) if value else b"", 1, 0))

    def vms():
        return [f"{host}/{vm}" for host, vm in directory.vms()]

    for host in ("h1", "h2"):
        take(f"{HOSTS}.{host}", HostRecord("now", host, 1.0, "1", 0, {}))
    for agent, count in (("earlier", 3), ("now", 6)):
        for number in range(count):
            take(f"{PORTS}.h1.{agent}{number}", VmRecord(agent, "root", []))
    take(f"{PORTS}.h2.other", VmRecord("now", "root", []))
    assert vms() == ["h1/now0", "h1/now1", "h1/now2", "h2/other"]
    assert directory.all_vms() == ["now0", "now1", "now2", "other"]
    assert [each.getMessage() for each in caplog.records] == [
        "host 'h1' announces more than 3 VMs: the others are left out"
    ]
    take(f"{PORTS}.h1.now0", None, {"KV-Operation": "DEL"})
    take(f"{PORTS}.h1.now5", VmRecord("now", "root", []))
    assert vms() == ["h1/now1", "h1/now2", "h1/now5", "h2/other"]
