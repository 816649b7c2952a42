"""`virtserial-qemu`: QEMU's command line, with the virtio-serial controllers served by virtserial."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

from virtserial.errors import ConfigError
from virtserial.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.dropin.plan import Plan

EXPLAIN = "--explain"
TAKE_HOSTS = "--take-hosts-from"
NAME = "virtserial-qemu"
ABOUT = {
    "--version": f"{NAME}, virtserial {__version__}, starts:",
    "--help": f"""usage: {NAME} [--explain | --take-hosts-from PID] [OPTION OF QEMU...]

  --explain             must come first: print the command line that QEMU would get, and what virtserial serves
  --take-hosts-from PID must come first, with -incoming: take the hosts' connections over from the {NAME} on this
                        machine that the guest leaves; PID is its QEMU's, or the path of its run directory

virtserial serves the virtio-serial controllers, ports, consoles and monitors of QEMU's options; QEMU gets all others as
they are.  VIRTSERIAL_QEMU names the QEMU.  Its own help:
""",
}
"""Printed before QEMU's own answer; QEMU answers alone to -version and -help, which programs parse."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exec QEMU with the given arguments; return 1 if that fails, 0 after --explain."""
    # Ctrl-C before anything is started: no traceback.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if len(words) == 1 and words[0] in ABOUT:
            print(ABOUT[words[0]], flush=True)
        if words[:1] == [EXPLAIN]:
            explain(words[1:])
        else:
            run(words)
    except ConfigError as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        if error.hint:
            print(f"{NAME}: {error.hint}", file=sys.stderr)
        return 1
    return 0


def run(words: Sequence[str]) -> None:
    """Start the device process and exec QEMU; does not return.

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
    hosts_from = None
    if words[:1] == [TAKE_HOSTS]:
        hosts_from, words = run_folder_of("".join(words[1:2])), words[2:]
    plan = make_plan(words, run_directory=run_directory, connect=streams.connect, architecture=architecture)
    if hosts_from is not None:
        plan.take_hosts_from(hosts_from)
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
