"""A keeper with joined monitors as a program: `joined_keeper.py STREAMS FOLDER READY OPTION...`.

STREAMS: JSON, our ends of the connections to QEMU by name (inherited descriptors); READY: a descriptor that is closed
when all is ready; OPTION...: those of `virtserial serve`.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys

from virtserial.cli.serve_options import Options, build, build_monitors, build_objects
from virtserial.daemon.keeper.keeper import Keeper
from virtserial.daemon.keeper.signals import Signals
from virtserial.daemon.worker_code import InstalledWorker
from virtserial.loop import EventLoop
from virtserial.monitor.joined import JoinedMonitors


def share_object(properties):
    """As much of the drop-in's as the tests here need."""
    if properties.get("qom-type") == "memory-backend-ram":
        return {**properties, "qom-type": "memory-backend-memfd", "share": True}
    return properties


def chardev_texts(words):
    """By id, the arguments of -chardev."""
    texts = [value for option, value in zip(words[::2], words[1::2], strict=True) if option == "-chardev"]
    return {text.partition("id=")[2].partition(",")[0]: text for text in texts}


def main(streams, folder, ready, *words):
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    options = Options(words)
    objects = build_objects(options)
    machine, chardevs = build(options, objects)
    monitor_options = build_monitors(options, machine, chardevs)
    loop = EventLoop()
    Signals(loop)
    keeper = Keeper(loop, InstalledWorker(), machine, chardevs, objects=objects)
    monitors = JoinedMonitors(
        keeper,
        monitor_options,
        {name: socket.socket(fileno=fd) for name, fd in json.loads(streams).items()},
        chardev_texts=chardev_texts(words),
        share_object=share_object,
        run_directory=folder,
    )
    try:
        keeper.start()
        os.close(int(ready))
        loop.run()
    finally:
        monitors.close()
        keeper.close()
        loop.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
