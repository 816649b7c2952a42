"""`virtserial serve`: the device process, told in QEMU's own words."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

from virtserial.cli.serve_options import HELP, USAGE, Options, build, build_monitors, build_objects, refused
from virtserial.cli.service import Service, predecessor
from virtserial.daemon.keeper.signals import keep_children
from virtserial.errors import ConfigError, UsageError, VirtserialError
from virtserial.standard_error import LineHandler

if TYPE_CHECKING:
    from virtserial.logs import LogFile


def run(words: list[str], usage: str = USAGE, controller: str = "-device virtio-serial,socket=PATH") -> int:
    """Serve until SIGTERM, SIGINT or SIGHUP; take over from a predecessor, if there is one.

    Args:
        usage: the text of --help.
        controller: what to say for a controller.

    Raises:
        ConfigError: an option is wrong or something cannot be opened; nothing is left behind.
    """
    options = Options(words)
    if options.help or not words:
        print(usage, end="")
        return 0 if options.help else 2
    if _helped(options):
        return 0
    if options.print_capabilities:
        print('{"type": "console", "features": []}')
        return 0
    log_file = _begin_log(options)
    keep_children()
    handover, passed = predecessor()
    if handover is not None:
        for _, fd in passed:
            os.close(fd)  # What these sockets are has come with the rest.
        service = Service.take_over(options, handover)
    else:
        service = _start(options, passed, controller)
    if log_file is not None:
        log_file.close()
    service.run()
    return 0


def _begin_log(options: Options) -> LogFile | None:
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(options.verbosity, 2)]
    form = "virtserial: %(message)s" if options.verbosity < 2 else "%(asctime)s %(name)s: %(message)s"
    stream = os.environ.get("JOURNAL_STREAM", "")
    if not (options.log_format or options.log_file or stream):
        logging.basicConfig(level=level, format=form, handlers=[LineHandler()])
        return None
    from virtserial import logs

    log_file = logs.LogFile(options.log_file) if options.log_file else None
    if options.log_format == "json":
        form = f"json {options.name}"
    elif not options.log_format and log_file is None and logs.is_journal(stream):
        form = f"journal {options.name}"
    elif log_file is not None:
        form = "%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"
    logs.begin(level, form)
    return log_file


def _start(options: Options, passed: list[tuple[str, int]], controller: str) -> Service:
    ready_fd = _descriptor("--ready-fd", options.ready_fd) if options.ready_fd is not None else None
    vmm_fd = _descriptor("--fd", options.vmm_fd) if options.vmm_fd is not None else None
    objects = build_objects(options)
    machine, chardevs = build(options, objects)
    monitors = build_monitors(options, machine, chardevs)
    if not machine.controllers and not monitors:
        raise UsageError(f"no controller: say {controller}", HELP)
    service = Service(options, machine, chardevs, objects)
    service.start(monitors, passed, ready_fd, vmm_fd)
    return service


def _helped(options: Options) -> bool:
    """Whether an option asked for help, which was given."""
    if any(text.partition(",")[0] in ("help", "?") for text in options.chardevs):
        from virtserial.options.chardev_options import chardev_help

        print(chardev_help(), end="")
        return True
    if any(text in ("help", "?") for text in options.objects):
        print("List of user creatable objects:\n  tls-creds-x509")
        return True
    for text in options.devices:
        driver, _, rest = text.partition(",")
        if driver in ("help", "?"):
            from virtserial.options.way_out import devices_help

            print(devices_help(), end="")
            return True
        if rest in ("help", "?"):
            from virtserial.options.device_options import device_help

            try:
                print(device_help(driver), end="")
            except ConfigError as error:
                raise refused("-device", text, error) from None
            return True
    return False


def _descriptor(option: str, value: str) -> int:
    try:
        fd = int(value)
        os.fstat(fd)
    except (ValueError, OverflowError, OSError):
        hint = f"{option} takes the number of a descriptor that this process inherits"
        raise UsageError(f"{option} {value}: not an open descriptor", hint) from None
    return fd


def check(document: int) -> None:
    """Be the process that says whether this code can take over with a document (keeper/renewal.py): status 1 if not.
    """
    # All that the new processes import, so that they find it compiled.
    import virtserial.daemon.worker.sandbox
    import virtserial.daemon.worker.vfio_user_front
    import virtserial.daemon.worker.vhost_user_front
    import virtserial.daemon.worker.worker
    import virtserial.monitor.server  # noqa: F401
    from virtserial.channel.codec import decode
    from virtserial.daemon.keeper.document import Document
    from virtserial.daemon.keeper.handover import read_document
    from virtserial.daemon.keeper.succession import build

    try:
        build(decode(Document, read_document(document)))
    except (VirtserialError, KeyError, TypeError, ValueError) as error:
        sys.exit(str(error))
