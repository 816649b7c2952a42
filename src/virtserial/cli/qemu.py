"""`virtserial-qemu`: QEMU's command line, with the virtio-serial controllers served by virtserial."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

from virtserial.dropin.command_line import WITHOUT_ARGUMENT
from virtserial.errors import ConfigError, UsageError
from virtserial.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.dropin.plan import Plan

NAME = "virtserial-qemu"
OWN_OPTIONS = ("explain", "take-hosts-from", "help", "version")
ABOUT = {
    "version": f"{NAME}, virtserial {__version__}, starts:",
    "help": f"""usage: {NAME} [--explain | --take-hosts-from PID] [OPTION OF QEMU...]

  --explain             start nothing: print the command line that QEMU would
                        get, and what virtserial serves
  --take-hosts-from PID with -incoming: take the hosts' connections over from
                        the {NAME} on this machine that the guest
                        leaves; PID is its QEMU's, or the path of its run
                        directory
  --help, --version     this and QEMU's; -help and -version are QEMU's alone

virtserial serves the virtio-serial controllers, ports, consoles and monitors of
QEMU's options; QEMU gets all others as they are.  VIRTSERIAL_QEMU names the
QEMU.  Its own help:
""",
}
"""Printed before QEMU's own answer; QEMU answers alone to -version and -help, which programs parse."""


class Words:
    """The command line, without our own options; they may stand wherever QEMU would look for an option.

    Attributes:
        qemu: QEMU's words.
        explain: --explain.
        hosts_from: of --take-hosts-from, or None.
        about: "help" or "version", for --help or --version.

    Raises:
        UsageError: an option lacks its argument.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.qemu: list[str] = []
        self.explain = False
        self.hosts_from: str | None = None
        self.about = ""
        remaining = iter(words)
        for word in remaining:
            name = word[2:] if word.startswith("--") else word[1:] if word.startswith("-") else ""
            if name == "explain":
                self.explain = True
                continue
            if name == "take-hosts-from":
                self.hosts_from = next(remaining, None)
                if self.hosts_from is None:
                    raise UsageError(f"{word}: requires an argument", "it is the process number of the QEMU before")
                continue
            if word in ("--help", "--version"):
                self.about = name
            self.qemu.append(word)
            if name and name not in WITHOUT_ARGUMENT:
                self.qemu += [value for value in (next(remaining, None),) if value is not None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exec QEMU with the given arguments; return 0 after --explain, 1 if something fails, 2 for wrong own options."""
    # Ctrl-C before anything is started: no traceback.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    about = ""
    try:
        words = Words(sys.argv[1:] if arguments is None else arguments)
        about = words.about
        if about:
            print(ABOUT[about], flush=True)
        if words.explain and not about:
            explain(words.qemu)
        else:
            run(words.qemu, words.hosts_from)
    except ConfigError as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        if error.hint:
            print(f"{NAME}: {error.hint}", file=sys.stderr)
        return 0 if about else 2 if isinstance(error, UsageError) else 1
    return 0


def run(words: Sequence[str], hosts_from: str | None = None) -> None:
    """Start the device process and exec QEMU; does not return.

    Args:
        hosts_from: of --take-hosts-from.

    Raises:
        ConfigError: that failed; nothing is left running.
    """
    from virtserial.daemon.keeper.signals import keep_children
    from virtserial.dropin.launch import Streams, exec_qemu, execute, start
    from virtserial.dropin.planner import make_plan
    from virtserial.dropin.program import VersionCheck, architecture_of, find_program
    from virtserial.dropin.run_folder import choose_run_folder, run_folder_of

    keep_children()
    architecture = architecture_of(sys.argv[0])
    program = find_program(architecture, sys.argv[0])
    streams = Streams()
    run_directory = choose_run_folder()
    left = None if hosts_from is None else run_folder_of(hosts_from)
    plan = make_plan(words, run_directory=run_directory, connect=streams.connect, architecture=architecture)
    if left is not None:
        plan.take_hosts_from(left)
    for remark in plan.remarks:
        print(f"{NAME}: {remark}", file=sys.stderr)
    if plan.untouched is not None:
        execute(program, plan.words)
    version = VersionCheck(program)
    start(plan, streams, run_directory)
    version.finish()
    exec_qemu(program, plan, streams)


def explain(words: Sequence[str]) -> None:
    """Print QEMU's command line, one option per line, and what virtserial serves.

    Raises:
        ConfigError: the command line is refused.
    """
    import shlex

    from virtserial.dropin.launch import FIRST_DESCRIPTOR
    from virtserial.dropin.planner import make_plan
    from virtserial.dropin.program import architecture_of, find_program
    from virtserial.dropin.run_folder import choose_run_folder

    architecture = architecture_of(sys.argv[0])
    streams: list[str] = []

    def connect(name: str) -> int:
        streams.append(name)
        return FIRST_DESCRIPTOR + len(streams) - 1

    plan = make_plan(words, run_directory=choose_run_folder(), connect=connect, architecture=architecture)
    try:
        program = find_program(architecture, sys.argv[0])
    except ConfigError:
        program = f"qemu-system-{architecture}"
    print(shlex.quote(program) + "".join(f" \\\n  {line}" for line in _lines(plan)))
    if plan.untouched is not None:
        print(f"# unchanged: {plan.untouched}")
    for text in (*plan.decisions, *plan.remarks):
        print(f"# {text}")
    for number, name in enumerate(streams):
        print(f"# descriptor {FIRST_DESCRIPTOR + number}: {name}")


def _lines(plan: Plan) -> list[str]:
    import shlex

    from virtserial.dropin.command_line import split

    options = split(plan.words)
    if options is None:
        return [shlex.quote(word) for word in plan.words]
    return [shlex.join(option.emitted) for option in options]


if __name__ == "__main__":
    sys.exit(main())
