"""Where tests are: a module of the rooms in ./scripts/check has its test file, and no test sets up a path."""

from __future__ import annotations

import re

import pytest
from support.places import ROOT

ROOMS = ("memory", "virtio", "console", "pci", "vfio_user", "vhost_user", "state", "options", "machine", "dropin")
PACKAGE = ROOT / "src" / "virtserial"
DECLARES = "declares constants, records or Protocols; whoever uses them is tested"
ELSEWHERE = {
    "memory/barrier.py": ("tests/virtio/test_split_device.py", "two instructions whose effect no single process sees"),
    "memory/file_status.py": ("tests/memory/test_region.py", "a system call that regions check files with"),
    "memory/mapping.py": ("tests/memory/test_region.py", "what a region maps"),
    "virtio/device.py": ("tests/pci/test_common.py", "a base class, tested behind the registers that drive it"),
    "virtio/features.py": ("tests/console/test_device.py", DECLARES),
    "virtio/status.py": ("tests/console/test_device.py", DECLARES),
    "virtio/ring/chains.py": ("tests/virtio/test_split_device.py", DECLARES),
    "virtio/ring/device_ring.py": ("tests/virtio/test_split_device.py", DECLARES),
    "virtio/ring/record.py": ("tests/virtio/test_split_device.py", DECLARES),
    "virtio/ring/driver_ring.py": ("tests/virtio/test_split_driver.py", DECLARES),
    "virtio/ring/packed/access.py": ("tests/virtio/test_packed_device.py", "each test runs on every kind of access"),
    "virtio/ring/packed/logged.py": ("tests/virtio/test_packed_queue.py", "the model compares memory with the log"),
    "virtio/ring/split/access.py": ("tests/virtio/test_split_device.py", "each test runs on every kind of access"),
    "console/moderation.py": ("tests/console/test_stream_pace.py", "works on the pace of a stream"),
    "console/records.py": ("tests/console/test_after_a_kill.py", DECLARES),
    "console/seams.py": ("tests/console/test_device.py", DECLARES),
    "console/slot.py": ("tests/console/test_control.py", DECLARES),
    "console/turns.py": ("tests/console/test_port.py", "schedules the ports, whose tests take the turns"),
    "console/unowned.py": ("tests/console/test_port.py", "a port number without a port"),
    "console/wire.py": ("tests/console/test_control.py", DECLARES),
    "pci/capabilities.py": ("tests/pci/test_configuration.py", "read through the configuration space"),
    "pci/function.py": ("tests/pci/test_common.py", "the function is what the tests of its registers drive"),
    "pci/layout.py": ("tests/pci/test_configuration.py", DECLARES),
    "vfio_user/device.py": ("tests/vfio_user/test_server.py", DECLARES),
    "vfio_user/journal.py": ("tests/vfio_user/test_server.py", "what a server's successor reads"),
    "vfio_user/migration_client.py": ("tests/vfio_user/test_migration.py", "the client's half of the same protocol"),
    "vfio_user/wire.py": ("tests/vfio_user/test_negotiation.py", DECLARES),
    "vhost_user/backend.py": ("tests/vhost_user/test_server.py", DECLARES),
    "vhost_user/records.py": ("tests/vhost_user/test_server.py", DECLARES),
    "vhost_user/wire.py": ("tests/vhost_user/test_server.py", DECLARES),
    "state/fields.py": ("tests/state/test_envelope.py", "refuses what somebody has changed in a state"),
    "state/vhost_user_state.py": ("tests/daemon/test_daemon_vhost_user.py", "a part of the same state"),
    "state/pci_state.py": ("tests/state/test_device_state.py", "a part of the same state"),
    "options/monitor_options.py": ("tests/monitor/test_monitor_qmp.py", "needs a running monitor"),
    "options/values.py": ("tests/options/test_chardev_options.py", "values of options, by these options"),
    "options/way_out.py": ("tests/cli/test_cli_mistakes.py", "what is said of a hundred mistakes"),
    "options/vhost_user_device.py": ("tests/daemon/test_daemon_vhost_user.py", "printed by the program"),
    "options/vfio_user_device.py": ("tests/dropin/test_planner.py", "written into QEMU's words there"),
    "machine/build.py": ("tests/machine/test_model.py", "plugs what the model then tells of"),
    "dropin/chardevs.py": ("tests/dropin/test_planner.py", "a part of the plan"),
    "dropin/command_line.py": ("tests/dropin/test_planner.py", "splits the words that are planned"),
    "dropin/device_process.py": ("tests/interop/test_dropin_life.py", "starts a process"),
    "dropin/devices.py": ("tests/dropin/test_planner.py", "a part of the plan"),
    "dropin/drivers.py": ("tests/dropin/test_planner.py", DECLARES),
    "dropin/launch.py": ("tests/interop/test_dropin_life.py", "starts processes"),
    "dropin/monitors.py": ("tests/dropin/test_planner.py", "a part of the plan"),
    "dropin/plan.py": ("tests/dropin/test_planner.py", DECLARES),
    "dropin/program.py": ("tests/cli/test_cli_qemu.py", "the program itself"),
    "dropin/references.py": ("tests/dropin/test_planner.py", "a part of the plan"),
}
"""Modules without a test file of their name: the file that tests them, and why."""


def homes_of(module):
    """The names that the test file of a module may have: room/sub/name.py has test_name.py or test_sub_name.py."""
    room, *folders, name = module.removesuffix(".py").split("/")
    tails = ["_".join([*folders[start:], name]) for start in range(len(folders) + 1)]
    return [ROOT / "tests" / room / f"test_{tail}.py" for tail in tails]


MODULES = sorted(
    path.relative_to(PACKAGE).as_posix()
    for room in ROOMS
    for path in (PACKAGE / room).rglob("*.py")
    if path.name != "__init__.py"
)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_a_test_file_of_its_name_or_is_listed_with_the_reason(module):
    has_its_own = any(path.exists() for path in homes_of(module))
    assert has_its_own != (module in ELSEWHERE), f"{homes_of(module)[0]}: write it or fill in ELSEWHERE"


def test_every_entry_of_the_list_is_true():
    assert set(ELSEWHERE) <= set(MODULES)
    for path, reason in ELSEWHERE.values():
        assert (ROOT / path).exists(), path
        assert reason


def test_no_test_sets_up_a_path_and_no_room_has_helpers_of_its_own():
    wrong = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "tests").rglob("*.py")
        if re.search(r"^(sys\.path|from test_)", path.read_text(), re.MULTILINE)
        or (path.parents[1] == ROOT / "tests" and not path.name.startswith(("test_", "conftest"))
            and path.parent.name not in ("support", "fuzz"))
    ]  # fmt: skip
    assert wrong == []
