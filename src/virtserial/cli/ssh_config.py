"""`virtserial ssh-config`: what ~/.ssh/config needs so that OpenSSH's programs reach VMs over their ports."""

from __future__ import annotations

from virtserial.cli.ssh import DOMAIN, proxy_command, sharing
from virtserial.guest.words import Parser

HEAD = f"""# Virtual machines that virtserial serves, as NAME{DOMAIN}, without a network.
# Put this into ~/.ssh/config:   virtserial ssh-config >> ~/.ssh/config
Host *{DOMAIN}
"""


def run(words: list[str]) -> int:
    """Print it."""
    parser = Parser(
        "virtserial ssh-config",
        description=f"Print the lines for ~/.ssh/config by which `ssh NAME{DOMAIN}` reaches the VM called NAME.",
    )  # fmt: skip
    parser.parse_args(words)
    print(HEAD, end="")
    for option in (f"ProxyCommand={proxy_command('%n')}", *sharing("~/.ssh")):
        print("    " + option.replace("=", " ", 1))
    return 0
