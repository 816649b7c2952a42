"""A device that is a process of its own: what may die or hang beside it, and what must not die with it."""

from __future__ import annotations

import os
import signal
import time

import pytest
from support.guests.exchange import exchange, socket_port
from support.guests.load import Drain, start_load
from support.waiting import wait_until

from virtserial.rig import Guest

NAMES = ("org.test.a", "org.test.b")
pytestmark = pytest.mark.slow
"""test_restart.py and test_vmm_killed.py kill the worker and the VMM in every run."""


@pytest.fixture
def sockets(module_folder):
    """Per controller: port name -> path of its host socket."""
    return [{name: f"{module_folder}/{controller}-{name}" for name in NAMES} for controller in range(2)]


def controller_options(number, sockets):
    options = ["-device", f"virtio-serial,id=ser{number}"]
    for port, (name, path) in enumerate(sockets.items(), 1):
        # Names are unique over all controllers of one process, ids too.
        options += socket_port(port, name if number == 0 else f"{name}.{number}", path, f"ser{number}")
    return options


def test_killed_vmm_leaves_the_device_ready_for_the_next(our_device, sockets):
    options = controller_options(0, sockets[0])
    with our_device.attach(options) as attached:
        for _ in range(2):
            a, b = sockets[0].values()
            with Guest(attached.arguments) as guest, Drain(a), Drain(b):
                start_load(guest, NAMES)
                time.sleep(0.3)
                guest.kill()
            assert attached.process.poll() is None, attached.log
        with Guest(attached.arguments) as guest:
            exchange(guest, sockets[0], mib=4)


def test_hanging_vmm_does_not_disturb_the_other(our_device, sockets):
    second = {f"{name}.1": path for name, path in sockets[1].items()}
    options = controller_options(0, sockets[0]) + controller_options(1, sockets[1])
    with our_device.attach(options) as attached:
        first_vm, second_vm = (Guest(arguments) for arguments in attached.per_controller)
        with first_vm, second_vm:
            with Drain(sockets[0][NAMES[0]]), Drain(sockets[0][NAMES[1]]):
                jobs = start_load(first_vm, NAMES)
                time.sleep(0.3)
                first_vm.pause()
                exchange(second_vm, second, mib=8)
                time.sleep(6)  # longer than QEMU's own time-out for an answer
                exchange(second_vm, second, mib=8)
                first_vm.resume()
                for job in jobs:
                    job.signal(signal.SIGKILL)
                    job.wait()
            exchange(first_vm, sockets[0], mib=4)
            exchange(second_vm, second, mib=4)


def test_worker_killed_ten_times_under_load_costs_no_guest(our_device, sockets):
    with our_device.attach(controller_options(0, sockets[0])) as attached, Guest(attached.arguments) as guest:
        with Drain(sockets[0][NAMES[0]]), Drain(sockets[0][NAMES[1]]):
            jobs = start_load(guest, NAMES)
            for _ in range(10):
                time.sleep(0.2)
                worker = wait_until(lambda: attached.worker_pid, complaint="there is no worker")
                os.kill(worker, signal.SIGKILL)
                wait_until(
                    lambda killed=worker: attached.worker_pid not in (None, killed), complaint="no new worker came"
                )
                assert guest.alive, guest.diagnosis()
            for job in jobs:
                job.signal(signal.SIGKILL)
                job.wait()
        exchange(guest, sockets[0], mib=8)
        guest.reboot()
        exchange(guest, sockets[0], mib=4)
