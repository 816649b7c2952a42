"""`virtserial ssh`: OpenSSH's client, over a port of a VM that needs no network."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
from typing import TYPE_CHECKING

from virtserial.cli.end import may_be_in_fleet
from virtserial.client.names import find_vm_port
from virtserial.daemon.keeper.run_directory import run_directory
from virtserial.errors import ConfigError, UsageError
from virtserial.guest.sshd import PORT

if TYPE_CHECKING:
    from virtserial.client.names import VmPort

DOMAIN = ".vm"
"""What hosts of ~/.ssh/config end in."""
USAGE = f"""usage: virtserial ssh [USER@][HOST/]VM[/PORT] [SSH-OPTION...] [COMMAND...]

Runs ssh to a virtual machine that `virtserial ls` lists, or `virtserial fleet
ls`, over its port {PORT} or PORT; in the guest,
`python3 -m virtserial_guest sshd` serves that.  No network is used.  Options
and COMMAND are ssh's own.  Several sessions share one connection
(ControlMaster).  For scp, sftp, rsync and others: `virtserial ssh-config`.
"""


def run(words: list[str]) -> int:
    """Become ssh.

    Raises:
        ConfigError: there is no such VM or port, or no ssh.
    """
    if not words or words[0] in ("-h", "--help", "-help"):
        print(USAGE, end="")
        return 0 if words else 2
    if words[0].startswith("-"):
        hint = "`virtserial ssh --help` shows the order"
        raise UsageError(f"{words[0]}: say the VM first, then ssh's options", hint)
    user, at, name = words[0].rpartition("@")
    try:
        host = _host_name(find_ssh_port(name), name)
    except ConfigError:
        # The ProxyCommand says whether the fleet has it.
        if not may_be_in_fleet(name):
            raise
        host = ".".join(reversed(name.split("/")[:2]))
    program = shutil.which("ssh")
    if program is None:
        raise ConfigError("there is no ssh on this host: install OpenSSH's client")
    options = [f"ProxyCommand={proxy_command(name)}", f"HostKeyAlias={host}{DOMAIN}", *sharing(_control_folder())]
    arguments = [word for option in options for word in ("-o", option)]
    sys.stdout.flush()
    os.execv(program, ["ssh", *arguments, f"{user}{at}{host}{DOMAIN}", *words[1:]])


def _host_name(port: VmPort, name: str) -> str:
    """What ssh calls the VM: by its process number, where that was said, for others may have the same name."""
    called = port.vm.name if name.startswith(port.vm.name) else str(port.vm.pid)
    return called.partition("/")[0].replace(" ", "-")


def find_ssh_port(name: str) -> VmPort:
    """Return the port for ssh of a VM, or the port that is named.

    Raises:
        ConfigError: there is none.
    """
    try:
        return find_vm_port(name if "/" in name else f"{name}/{PORT}")
    except ConfigError as error:
        if str(error).endswith(f"has no port '{PORT}'"):
            hint = f"give it one, -device virtserialport,name={PORT},chardev=..., or say VM/PORT"
            raise ConfigError(str(error), hint) from None
        raise


def proxy_command(target: str) -> str:
    """What ssh runs to connect; its tokens (%n) stay."""
    installed = shutil.which("virtserial")
    words = [installed] if installed else [sys.executable, "-m", "virtserial"]
    command = shlex.join(word.replace("%", "%%") for word in words)
    return f"{command} pipe --session -- {target if target == '%n' else shlex.quote(target).replace('%', '%%')}"


def sharing(folder: str) -> list[str]:
    """Options by which sessions share a connection: a port serves one client at a time."""
    return ["CheckHostIP=no", "ControlMaster=auto", f"ControlPath={folder}/ssh-%C", "ControlPersist=10"]


def _control_folder() -> str:
    """The folder of ssh's control sockets: that of `ssh-config`, where it can be, for both share a port's connection.

    Raises:
        ConfigError: it cannot be made.
    """
    home = os.path.expanduser("~/.ssh")
    with contextlib.suppress(OSError):
        os.makedirs(home, mode=0o700, exist_ok=True)
    folder = home if os.access(home, os.W_OK) else run_directory()
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}") from error
    return folder
