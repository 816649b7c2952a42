"""Figures out of what keepers tell: checked, bounded, one VM's nonsense costs no other anything."""

from __future__ import annotations

import os
import threading
import time

import pytest
from support.pretender import INVENTORY, PORT, pretender

from virtserial.client.registry import Vm, running_vms
from virtserial.client.survey import Seen
from virtserial.metrics import figures
from virtserial.metrics.catalogue import METRICS
from virtserial.metrics.exposition import registry_of, samples_of
from virtserial.metrics.figures import figures_of
from virtserial.metrics.processes import process_figures
from virtserial.metrics.survey import Survey

generate_latest = pytest.importorskip("prometheus_client").generate_latest
VM = Vm("alpha", os.getpid(), os.geteuid(), "/nowhere")
LATENCY = {"bounds": [0.001, 1.0], "counts": [5, 2, 1], "seconds": 4.5, "unanswered": 0.5}


@pytest.fixture
def registry(folder, monkeypatch):
    monkeypatch.setenv("VIRTSERIAL_REGISTRY", str(folder / "vms"))
    return folder / "vms"


def told(**changes):
    return figures_of(Seen(VM, {**INVENTORY, "ports": [PORT], **changes}, "", 0.25))


def of_port(**changes):
    return told(ports=[{**PORT, **changes}])


def test_every_figure_has_its_place():
    vm = told(**{"worker-latency": LATENCY})
    assert (vm.error, vm.worker, vm.restarts, vm.upgrades, vm.seconds) == ("", True, 2, 1, 0.25)
    assert vm.latency == ([(0.001, 5), (1.0, 7), (float("inf"), 8)], 4.5, 0.5)
    assert vm.controllers == (("ser0", True, 1, 31),)
    assert vm.ports == (("ser0", 1, "org.example", True, 1, (10, 20), 3, 4, 5, None, None),)


def test_a_keeper_that_counts_more_is_read_too():
    [port] = of_port(**{"messages-to-host": 7, "messages-to-guest": 8, "throttled-ns": 1_500_000_000}).ports
    assert (port.messages, port.throttled) == ((7, 8), 1.5)


@pytest.mark.parametrize("value", [-1, 1 << 64, 10**400, True, "5", None, 1.5, [], {}])
@pytest.mark.parametrize("what", ["to-host", "number", "doubtful"])
def test_a_counter_that_is_none_makes_the_vm_an_error(what, value):
    vm = of_port(**{what: value})
    assert "alpha" in vm.error
    assert vm.ports == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"restarts": -1}, {"worker-pid": "x"}, {"ports": [{}]}, {"controllers": [{"name": "a", "max-ports": None}]},
        {"worker-latency": []}, {"worker-latency": {**LATENCY, "counts": [1]}},
        {"worker-latency": {**LATENCY, "bounds": [2, 1]}}, {"worker-latency": {**LATENCY, "seconds": float("nan")}},
        {"worker-latency": {**LATENCY, "counts": [1, 2, -3]}}, {"worker-latency": {**LATENCY, "bounds": ["1", 2]}},
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_an_error_of_that_vm(changes):
    assert told(**changes).error


def test_names_are_printable_and_have_an_end():
    [port] = of_port(name="\ud800\n\"" + "x" * 1000).ports
    assert port.name.startswith('??"x')
    assert len(port.name) == figures.MAX_TEXT


def test_ports_beyond_the_limit_and_twice_the_same_are_left_out():
    vm = told(ports=[{**PORT, "number": number} for number in range(2000)])
    assert (len(vm.ports), vm.left_out) == (figures.MAX_VM_PORTS, 2000 - figures.MAX_VM_PORTS)
    assert told(ports=[PORT, PORT]).left_out == 1
    assert told(controllers=INVENTORY["controllers"] * 100).left_out == 99


def test_a_worker_that_is_no_child_of_its_keeper_has_no_figures():
    assert [each.role for each in process_figures(os.getpid(), os.getppid())] == ["keeper"]
    assert [each.role for each in process_figures(os.getppid(), os.getpid())] == ["keeper", "worker"]
    assert process_figures(1 << 30, 0) == []


def test_every_metric_is_told_and_no_other():
    port = {**PORT, "messages-to-host": 7, "messages-to-guest": 8, "throttled-ns": 1}
    vm = told(**{"ports": [port], "worker-latency": LATENCY, "worker-pid": os.getpid()})
    survey = Survey(choose=list)
    names = {name for name, _, _ in samples_of(survey.take()._replace(vms=[vm]))}
    assert names == {metric.name for metric in METRICS if metric.kind != "histogram"}


@pytest.mark.parametrize(
    "answer",
    [
        b"x\r\n", b'{"return": []}\r\n', b"[" * 100_000 + b"\r\n",
        b"9" * 10_000 + b"\r\n", [], {}, {"controllers": 5, "ports": []}, {"controllers": [], "ports": [[]]},
        {**INVENTORY, "ports": [{"number": 1}]},
        {**INVENTORY, "ports": [{**PORT, "name": "\ud800"}] * 3},
    ],
)  # fmt: skip
def test_a_keeper_that_answers_nonsense_costs_itself_alone(registry, answer):
    with pretender(registry, answer):
        text = generate_latest(registry_of(Survey())).decode()
    assert "virtserial_exporter_vms 1.0" in text
    assert "virtserial_vm_up{" in text


def test_one_that_says_nothing_is_down_after_three_seconds_and_many_who_ask_wait_for_one_survey(registry):
    with pretender(registry):
        survey = Survey()
        begun = time.monotonic()
        snapshots = []
        threads = [threading.Thread(target=lambda: snapshots.append(survey.take())) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    # Eight surveys one after the other would take 24 s.
    assert 2.9 < time.monotonic() - begun < 20
    assert len(set(map(id, snapshots))) == 1
    assert "no answer" in snapshots[0].vms[0].error


def test_two_vms_of_one_name_have_series_of_their_own_and_the_caller_s_own_come_first(monkeypatch):
    vms = [Vm("a", 7, 4711, "/x"), Vm("a", 6, os.geteuid(), "/x"), Vm("a", 5, os.geteuid(), "/x")]
    names = [(vm.name, vm.user) for vm in Survey(choose=lambda: vms).take().vms]
    assert names[:2] == [("a", VM.user), ("a#6", VM.user)]
    assert names[2] == ("a", "4711")


def test_ports_beyond_the_exporter_s_limit_are_counted(registry):
    with pretender(registry, {**INVENTORY, "ports": [{**PORT, "number": number} for number in range(30)]}):
        assert len(running_vms()) == 1
        snapshot = Survey(max_ports=7).take()
    assert len(snapshot.vms[0].ports) == 7
    assert snapshot.left_out == {"vms": 0, "ports": 23}
