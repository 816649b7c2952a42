"""What every test may use: folders with a short path, and a limit of time for each room's tests."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from support.console_guest import Guest
from support.folders import short_folder
from support.waiting import PATIENCE

from virtserial.loop import EventLoop

LIMITS = {"cli": 30, "client": 120, "daemon": 45, "driver": 60, "fleet": 90, "guest_library": 60, "metrics": 60,
          "web": 90}
"""Seconds that a test of a room may take, where pyproject.toml's limit (for the real guests) is too long to wait."""
SLOW_ROOMS = ("client", "daemon", "hostile", "monitor")
WITH_GUESTS = ("interop", "clients")
"""Rooms whose tests all need a real QEMU."""
LONGEST_NAME = 200
LONGEST_DATA = 10_000
HERE = Path(__file__).parent
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", settings.get_profile("busy"), max_examples=20)
settings.load_profile("busy")  # how long an example takes says how busy the machine is
PROCESSES = ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "os.exec")
"""Audit events of who starts a process."""


def pytest_addoption(parser):
    parser.addoption("--no-process", action="store_true", help="fail tests that start a process; try few examples")


def pytest_make_parametrize_id(val, argname):
    """Name a long value by its size: names go to every worker, and all must make the same ones."""
    return f"{argname} of {len(val)}" if isinstance(val, str | bytes) and len(val) > LONGEST_NAME else None


def pytest_assertrepr_compare(op, left, right):
    """Say where long data differs: a full comparison of megabytes takes longer than any test may."""
    both = (left, right)
    if op != "==" or not all(isinstance(each, bytes | bytearray) and len(each) > LONGEST_DATA for each in both):
        return None
    same = next((at for at, (one, other) in enumerate(zip(*both, strict=False)) if one != other), None)
    where = "one begins with the other" if same is None else f"the first difference is at byte {same}"
    return [f"{len(left)} bytes == {len(right)} bytes: {where}"]


def pytest_configure(config):
    # Programs under test inherit it, and a shell lets a job in the background ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("--no-process"):
        settings.load_profile("quick")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    if not os.environ.get("VIRTSERIAL_REFERENCE"):
        config.hook.pytest_deselected(items=[item for item in items if is_reference(item)])
        items[:] = [item for item in items if not is_reference(item)]
    skip_slow = pytest.mark.skip(reason="takes long: VIRTSERIAL_SLOW=1 runs it")
    for item in items:
        if "slow" in item.keywords and not os.environ.get("VIRTSERIAL_SLOW"):
            item.add_marker(skip_slow)
        room = item.path.relative_to(HERE).parts[0]
        if room in LIMITS and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(LIMITS[room] * PATIENCE))
        for bug in item.iter_markers("foreign_bug"):
            if f"[{bug.kwargs['case']}" in item.name:
                item.add_marker(pytest.mark.flaky(reruns=1))
        if room in WITH_GUESTS:
            item.add_marker(pytest.mark.qemu)
        if shared := shared_guest(item) if "qemu" in item.keywords else shared_module(item):
            item.add_marker(pytest.mark.xdist_group(shared))
    if hasattr(config, "workerinput"):
        spread(items)


def spread(items):
    """Put units of work with and without guests side by side, evenly: guests take processors, the others mostly wait.

    Of each sort, what takes longest starts first, so that all workers end at about the same time.
    """
    order = {}
    for has_guest in (True, False):
        some = [item for item in items if ("qemu" in item.keywords) == has_guest]
        some.sort(key=lambda item: ("stress" not in item.keywords, not is_slow(item), not is_shared(item)))
        units = list(dict.fromkeys(map(unit, some)))
        order |= {name: number / len(units) for number, name in enumerate(units)}
    items.sort(key=lambda item: order[unit(item)])


def unit(item):
    """What one worker runs as a whole: a group's name, or a test's."""
    group = item.get_closest_marker("xdist_group")
    return group.args[0] if group else item.nodeid


def is_reference(item):
    """Whether a test runs on QEMU's own device: it shows that QEMU does what we expect of ours."""
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    first = [value[0] if isinstance(value, tuple) and value else value for value in values]
    return "reference" in item.keywords or any(isinstance(value, str) and value == "qemu" for value in first)


def is_shared(item):
    """Whether a test is one of a unit of work; those that are alone fill the end."""
    return item.get_closest_marker("xdist_group") is not None


def is_slow(item):
    """Whether a test is of a room whose modules take longest."""
    return item.path.relative_to(HERE).parts[0] in SLOW_ROOMS


def shared_module(item):
    """A name for a module without guests, "" where its tests take long; xdist needs time for each unit of work."""
    return "" if "stress" in item.keywords else str(item.path.relative_to(HERE))


def shared_guest(item):
    """A name for the guest that a test shares with others of its module; "" where it boots one of its own.

    One worker runs all tests of a guest.  A guest is a fixture of the module and boots once for each of its parameters.
    """
    definitions = item._fixtureinfo.name2fixturedefs.values()
    if not any(each[-1].scope == "module" and each[-1].baseid == item.parent.nodeid for each in definitions):
        return ""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    names = [name for name, each in item._fixtureinfo.name2fixturedefs.items() if each[-1].scope == "module"]
    values = [str(parameters[name]) for name in names if name in parameters]
    # xdist takes no group's name that has a bracket.
    return " ".join([item.path.name, *values]).translate(str.maketrans("[]", "()"))


def refuse_processes(event, arguments):
    assert event not in PROCESSES, f"./scripts/check runs no test that starts a process: {arguments}"


@pytest.fixture(scope="session", autouse=True)
def no_process(request):
    if request.config.getoption("--no-process"):
        sys.addaudithook(refuse_processes)


@pytest.fixture
def loop():
    loop = EventLoop()
    yield loop
    loop.close()


@pytest.fixture
def make_guest():
    """Console devices whose rings a test writes byte by byte."""
    made = []

    def make(*arguments, **options):
        made.append(Guest(*arguments, **options))
        return made[-1]

    yield make
    for guest in made:
        guest.close()


@pytest.fixture
def folder():
    """A folder of the test's own, with a short path."""
    with short_folder() as path:
        yield path


@pytest.fixture(scope="module")
def module_folder():
    """The same, for what all tests of a module share."""
    with short_folder() as path:
        yield path
