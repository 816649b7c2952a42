"""ssh into a guest that has moved to another virtserial-qemu: a new session works at once."""

from __future__ import annotations

import pytest
from support.guests.moved_guest import MovedGuest
from support.guests.ssh_machine import PREPARE, SshMachine, guest_files, serving
from support.places import REGISTRY

from virtserial.guest.sshd import PORT
from virtserial.rig.image import extra_archive, guest_image

pytestmark = pytest.mark.slow


def test_a_new_session_works_after_a_migration(module_folder, monkeypatch):
    monkeypatch.setenv("VIRTSERIAL_REGISTRY", REGISTRY)
    initramfs = module_folder / "initramfs"
    initramfs.write_bytes(guest_image().initramfs.read_bytes() + extra_archive(guest_files(module_folder)))
    words = ["-initrd", str(initramfs), "-name", "moving", "-m", "768", "-device", "virtio-serial-pci"]
    words += ["-chardev", "socket,id=ssh,path=FOLDER/ssh,server=on,wait=off"]
    words += ["-device", f"virtserialport,chardev=ssh,name={PORT}"]
    with MovedGuest(words) as guest:
        guest.check(PREPARE)
        machine = SshMachine(guest, "moving", module_folder)
        with serving(guest):
            for moves in range(3):
                done = machine.ssh(f"echo {moves}; uname -n")
                assert (done.returncode, done.stdout) == (0, f"{moves}\nguest\n"), done.stderr
                machine.end_sharing()
                guest.migrate()
