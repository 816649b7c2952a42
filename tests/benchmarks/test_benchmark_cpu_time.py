"""CPU clocks of threads, processes and their children."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

from cpu_time import CpuMeter, CpuTime, descendants, machine_seconds, thread_seconds

BUSY = "import time\nwhile time.process_time() < 0.2: pass\nprint('done', flush=True)\ntime.sleep(60)"


def test_threads_are_counted_each_by_itself():
    before = thread_seconds(os.getpid())
    burnt_in = []

    def burn():
        start = time.thread_time()
        while time.thread_time() < start + 0.1:
            pass
        burnt_in.append(threading.get_native_id())
        after.update(thread_seconds(os.getpid()))

    after = {}
    thread = threading.Thread(target=burn)
    thread.start()
    thread.join()
    assert 0.1 <= after[burnt_in[0]] - before.get(burnt_in[0], 0) < 1


def test_meter_separates_processes_vcpus_and_other_threads():
    # A shell whose child burns 0.2 s stands for our device; this process for QEMU, its main thread for a vCPU.
    command = ["sh", "-c", '"$0" -c "$1"; true', sys.executable, BUSY]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as device:
        try:
            meter = CpuMeter(os.getpid(), [os.getpid()], [device.pid])
            before = meter.read()
            assert device.stdout.readline() == b"done\n"
            while time.thread_time() < 0.05:
                pass
            used = meter.read() - before
            children = descendants(device.pid)
            assert len(children) == 1
        finally:
            for pid in [*descendants(device.pid), device.pid]:
                os.kill(pid, 9)
    assert 0.15 <= used.processes < 2
    assert used.vmm < 0.15
    assert used.device == used.processes + used.vmm


def test_what_has_ended_counts_nothing():
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert CpuMeter(process.pid, [], [process.pid]).read() == CpuTime(0, 0, 0)
    assert descendants(process.pid) == []


def test_machine_clock_runs():
    before = machine_seconds()[0]
    start = time.process_time()
    while time.process_time() < start + 0.1:
        pass
    assert machine_seconds()[0] - before >= 0.05
