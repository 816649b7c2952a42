"""Every case on our device in three forms of guest memory, in this process and in its own; and on QEMU's device.

In this process every case runs in every form.  A process of its own has fronts and forms of memory: in the gate they
share the cases of each ring, so that each case runs in a process; VIRTSERIAL_SLOW=1 runs all on each.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from virtserial.conformance.cases import CASES
from virtserial.conformance.driver import HostileDriver, HostileError
from virtserial.conformance.legacy_cases import LEGACY_CASES, LEGACY_OUTCOMES, legacy_outcome
from virtserial.conformance.packed_cases import (
    NOT_PACKED,
    PACKED,
    PACKED_OUTCOMES,
    PACKED_QEMU,
    PACKED_RING_CASES,
    packed_outcome,
)
from virtserial.conformance.packed_driver import PackedHostileDriver
from virtserial.conformance.steps import Case, Outcome, Start
from virtserial.testing.hostile.__main__ import main
from virtserial.testing.hostile.in_memory import InMemoryMachine
from virtserial.testing.hostile.over_legacy import LegacyMachine
from virtserial.testing.hostile.over_vfio_user import VfioUserMachine
from virtserial.testing.hostile.over_vhost_user import VhostUserMachine
from virtserial.testing.hostile.table import differences

DEVIATIONS = Path(__file__).parents[2] / "docs" / "deviations.md"
each_case = pytest.mark.parametrize("case", CASES, ids=[case.name.split()[0] for case in CASES])
each_packed_case = pytest.mark.parametrize("case", PACKED, ids=[case.name.split()[0] for case in PACKED])


def shared_out(fixture, kinds, cases, places):
    """Parametrize `fixture` (where it has kinds) and `case`; what is not of this kind's share is slow.

    Args:
        kinds: of the fixture, () where it has none.
        places: among how many kinds the cases are shared, and the place of the first kind here.
    """
    among, first = places
    values = []
    for place, kind in enumerate(kinds or [None], first):
        for number, case in enumerate(cases):
            name = case.name.split()[0]
            values.append(
                pytest.param(
                    *([] if kind is None else [kind]),
                    case,
                    id=name if kind is None else f"{kind}-{name}",
                    marks=[] if number % among == place else [pytest.mark.slow],
                )
            )
    if kinds:
        return pytest.mark.parametrize((fixture, "case"), values, indirect=[fixture], scope="module")
    return pytest.mark.parametrize("case", values)


@pytest.fixture(scope="module", params=[True, False], ids=["mapped", "file"])
def in_memory(request):
    machine = InMemoryMachine(sealed=request.param)
    yield HostileDriver(machine)
    machine.close()


MEMORY = ("shared", "messages")
"""The forms of guest memory behind a vfio-user front."""


@pytest.fixture(scope="module")
def over_vfio_user(request):
    machine = VfioUserMachine(shared=request.param == "shared")
    yield HostileDriver(machine)
    machine.close()


@pytest.fixture(scope="module")
def over_vhost_user():
    machine = VhostUserMachine()
    yield HostileDriver(machine)
    machine.close()


@each_case
def test_our_device_does_as_expected_and_heals(case, in_memory):
    assert str(in_memory.play(case)) == str(case.expected)


@pytest.fixture(scope="module")
def by_legacy():
    machine = LegacyMachine()
    yield HostileDriver(machine)
    machine.close()


@pytest.mark.parametrize("case", CASES + LEGACY_CASES, ids=[case.name.split()[0] for case in CASES + LEGACY_CASES])
def test_our_device_does_as_expected_by_the_legacy_interface_and_heals(case, by_legacy):
    assert str(by_legacy.play(case)) == str(legacy_outcome(case))


@each_packed_case
def test_our_device_does_as_expected_with_packed_rings_and_heals(case, in_memory):
    assert str(PackedHostileDriver(in_memory.machine).play(case)) == str(packed_outcome(case))


@shared_out("over_vfio_user", MEMORY, PACKED, (2, 0))
def test_our_process_does_as_expected_with_packed_rings_and_heals(case, over_vfio_user):
    assert str(PackedHostileDriver(over_vfio_user.machine).play(case)) == str(packed_outcome(case))


@shared_out("over_vhost_user", (), PACKED_RING_CASES, (2, 1))
def test_it_does_the_same_with_packed_rings_behind_a_vhost_user_front_end(case, over_vhost_user):
    assert str(PackedHostileDriver(over_vhost_user.machine).play(case)) == str(packed_outcome(case))


@pytest.mark.qemu
@pytest.mark.reference
@each_packed_case
def test_qemus_device_does_the_same_with_packed_rings_or_what_is_listed(case, qemu_machine):
    expected = PACKED_QEMU.get(case.name.split()[0], case.qemu) or packed_outcome(case)
    assert str(PackedHostileDriver(qemu_machine).play(case)) == str(expected)


def test_every_other_outcome_with_packed_rings_is_one_and_has_its_reason():
    by_number = {case.name.split()[0]: case for case in CASES}
    assert set(NOT_PACKED) <= set(by_number)
    for number, (outcome, reason) in PACKED_OUTCOMES.items():
        assert str(outcome) != str(by_number[number].expected)
        assert reason


def test_every_other_outcome_by_the_legacy_interface_is_one_and_has_its_reason():
    by_number = {case.name.split()[0]: case for case in CASES}
    for number, (outcome, reason) in LEGACY_OUTCOMES.items():
        assert str(outcome) != str(by_number[number].expected)
        assert reason


@shared_out("over_vfio_user", MEMORY, CASES, (3, 0))
def test_our_process_does_as_expected_heals_and_its_other_device_works(case, over_vfio_user):
    assert str(over_vfio_user.play(case)) == str(case.expected)


@shared_out("over_vhost_user", (), CASES, (3, 2))
def test_it_does_the_same_behind_a_vhost_user_front_end(case, over_vhost_user):
    assert str(over_vhost_user.play(case)) == str(case.expected)


@pytest.mark.qemu
@pytest.mark.reference
@each_case
def test_qemus_device_does_the_same_or_what_is_listed(case, qemu_machine):
    outcome = HostileDriver(qemu_machine).play(case)
    assert str(outcome) == str(case.qemu or case.expected)


def test_every_difference_is_in_the_documents_with_its_reason():
    assert differences() in DEVIATIONS.read_text()
    for case in CASES:
        assert bool(case.qemu) == bool(case.reason), case.name
        assert case.qemu is None or str(case.qemu) != str(case.expected), case.name


def test_no_two_cases_have_one_name():
    names = [case.name.split()[0] for case in CASES]
    assert len(set(names)) == len(names) >= 50


def test_the_command_prints_a_table_and_its_verdict(capsys):
    assert main(["--on", "memory", "c0"]) == 0
    shown = capsys.readouterr().out
    assert "c05 loop" in shown
    assert shown.endswith("all as expected\n")


def test_the_command_fails_where_a_device_does_otherwise(capsys, monkeypatch):
    wrong = Case("c00 nothing", "", (Start("open"),), Outcome(stopped=True))
    monkeypatch.setattr("virtserial.testing.hostile.__main__.CASES", [wrong])
    assert main(["--on", "memory"]) == 1
    assert "!! memory: goes on" in capsys.readouterr().out


def test_a_device_that_does_not_heal_is_found(monkeypatch):
    machine = InMemoryMachine()
    try:
        monkeypatch.setattr(machine.device, "reset", lambda: None)
        with pytest.raises(HostileError):
            HostileDriver(machine).play(CASES[3])
    finally:
        machine.close()
