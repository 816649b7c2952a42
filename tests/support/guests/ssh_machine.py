"""A guest whose sshd is reached over a port, and the OpenSSH client on the host, with files of the test's own."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager

from support.fetched import fetch_or_skip
from support.guests.guest_library import PROGRAM, library_files
from support.places import ENVIRONMENT
from support.waiting import wait_until

from virtserial.client.names import find_vm_port
from virtserial.guest.sshd import PORT
from virtserial.rig.programs import programs

MEGABYTES = int(os.environ.get("VIRTSERIAL_SSH_MIB", "4"))
"""Size of what scp copies; 200 for the whole thing."""
LIMIT = 120 + MEGABYTES
SSHD_CONFIG = """
HostKey /etc/ssh/host_key
UsePAM no
PermitRootLogin prohibit-password
AuthorizedKeysFile /root/.ssh/authorized_keys
StrictModes no
Subsystem sftp /usr/lib/openssh/sftp-server
"""
PREPARE = "chmod 600 /etc/ssh/host_key /root/.ssh/authorized_keys; mkdir -p /var/empty; ip link"
"""To run in the guest before its first session."""


def make_key(path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path.read_bytes(), path.with_suffix(".pub").read_bytes()


def guest_files(folder):
    """What a guest needs to serve ssh to who has the key FOLDER/key."""
    packages = fetch_or_skip(programs, "openssh-server", "openssh-sftp-server", "rsync", "dropbear-bin")
    host_key, _ = make_key(folder / "host_key")
    _, public = make_key(folder / "key")
    sftp_server = packages.root / "usr/lib/openssh/sftp-server"
    files = {
        **packages.guest_files("sshd", "rsync", "dropbear"), **packages.guest_libraries(sftp_server), **library_files(),
        "/usr/lib/openssh/sftp-server": sftp_server.read_bytes(), "/etc/ssh/sshd_config": SSHD_CONFIG.encode(),
        "/etc/ssh/host_key": host_key, "/root/.ssh/authorized_keys": public,
        "/etc/passwd": b"root:x:0:0:root:/root:/bin/sh\nsshd:x:100:65534::/run/sshd:/bin/false\n",
    }  # fmt: skip
    files.pop("/lib/x86_64-linux-gnu/libc.so.6")  # the guest has it
    return files


@contextmanager
def serving(guest, more=""):
    """`virtserial_guest sshd` in the guest."""
    job = guest.start(f"exec env {PROGRAM} sshd {PORT} {more}")
    try:
        yield
    finally:
        job.signal(9)
        job.wait()


class SshMachine:
    """A guest by the name of its VM, and the OpenSSH client's files on the host.

    Args:
        name: of the VM.
        process: the one that serves its device, if there is one.
        folder: has the key; gets the client's configuration.
    """

    def __init__(self, guest, name, folder, process=None):
        self.guest, self.process, self.folder = guest, process, folder
        self.name = name
        (folder / "config").write_text(
            f"Host *.vm\n ProxyCommand {sys.executable} -m virtserial pipe --session --timeout 90 -- %n\n"
            f" IdentityFile {folder}/key\n IdentitiesOnly yes\n UserKnownHostsFile {folder}/known\n"
            f" StrictHostKeyChecking accept-new\n ControlMaster auto\n ControlPath {folder}/%C\n"
            " ControlPersist 30\n LogLevel ERROR\n"
        )

    def command(self, *words):
        """The words of an OpenSSH program with this test's own configuration."""
        return [words[0], "-F", f"{self.folder}/config", *words[1:]]

    def run(self, *words, **more):
        return subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=LIMIT, **more)

    def ssh(self, *words, **more):
        return self.run(*self.command("ssh", f"root@{self.name}.vm", *words), **more)

    def end_sharing(self):
        self.run(*self.command("ssh", "-O", "exit", f"root@{self.name}.vm"))
        wait_until(lambda: not find_vm_port(f"{self.name}/{PORT}").clients)
