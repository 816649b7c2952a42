"""A snapshot as Prometheus reads it, written by its own client library.

The series are those of the moment: what is gone has none, so nothing is kept of VMs that come and go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from virtserial.metrics.catalogue import LATENCY, METRICS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client import Metric

    from virtserial.metrics.figures import PortFigures, VmFigures
    from virtserial.metrics.survey import Snapshot, Survey

Sample = tuple[str, tuple[str, ...], float]
"""A metric's name, the values of its labels, its value."""

WAYS = ("to_host", "to_guest")


class Exposition(Collector):
    """
    Args:
        survey: whose figures these are.
    """

    def __init__(self, survey: Survey) -> None:
        self._survey = survey

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        snapshot = self._survey.take()
        families = {
            name: (CounterMetricFamily if kind == "counter" else GaugeMetricFamily)(name, f"{what}.", labels=labels)
            for name, kind, labels, what in METRICS
            if kind != "histogram"
        }
        for name, labels, value in samples_of(snapshot):
            families[name].add_metric(labels, value)
        yield from families.values()
        yield _latencies(snapshot.vms)


def _latencies(vms: Iterable[VmFigures]) -> HistogramMetricFamily:
    metric = next(each for each in METRICS if each.name == LATENCY)
    family = HistogramMetricFamily(metric.name, f"{metric.what}.", labels=metric.labels)
    for vm in vms:
        if vm.latency is not None:
            buckets = [("+Inf" if bound == float("inf") else str(bound), count) for bound, count in vm.latency.buckets]
            family.add_metric((vm.name, vm.user), buckets, vm.latency.seconds)
    return family


def samples_of(snapshot: Snapshot) -> Iterator[Sample]:
    """Yield all samples of a snapshot but those of histograms."""
    yield "virtserial_exporter_vms", (), len(snapshot.vms) + snapshot.left_out["vms"]
    yield "virtserial_exporter_survey_seconds", (), snapshot.seconds
    for what, count in snapshot.left_out.items():
        yield "virtserial_exporter_left_out", (what,), count
    for vm in snapshot.vms:
        yield from _samples_of_vm(vm)


def _samples_of_vm(vm: VmFigures) -> Iterator[Sample]:
    place = (vm.name, vm.user)
    yield "virtserial_vm_up", place, not vm.error
    yield "virtserial_vm_answer_seconds", place, vm.seconds
    if vm.error:
        return
    yield "virtserial_worker_up", place, vm.worker or vm.changing
    yield "virtserial_worker_restarts_total", place, vm.restarts
    yield "virtserial_worker_upgrades_total", place, vm.upgrades
    yield "virtserial_keeper_upgrades_total", place, vm.renewals
    if vm.latency is not None:
        yield "virtserial_worker_unanswered_seconds", place, vm.latency.unanswered
    for process in vm.processes:
        yield "virtserial_resident_memory_bytes", (*place, process.role), process.resident
        yield "virtserial_cpu_seconds_total", (*place, process.role), process.cpu
    for controller in vm.controllers:
        here = (*place, controller.name)
        yield "virtserial_controller_vmm_connected", here, controller.has_vmm
        yield "virtserial_controller_ports", here, controller.ports
        yield "virtserial_controller_max_ports", here, controller.max_ports
    for port in vm.ports:
        yield from _samples_of_port(port, (*place, port.controller, str(port.number), port.name))


def _samples_of_port(port: PortFigures, here: tuple[str, ...]) -> Iterator[Sample]:
    yield "virtserial_port_guest_open", here, port.guest_open
    if port.clients is not None:
        yield "virtserial_port_clients", here, port.clients
    for way, count in zip(WAYS, port.bytes, strict=True):
        yield "virtserial_port_bytes_total", (*here, way), count
    for way, count in zip(WAYS, port.messages or (), strict=False):
        yield "virtserial_port_messages_total", (*here, way), count
    if port.throttled is not None:
        yield "virtserial_port_throttled_seconds_total", here, port.throttled
    yield "virtserial_port_discarded_bytes_total", here, port.discarded
    yield "virtserial_port_dropped_bytes_total", here, port.dropped
    yield "virtserial_port_doubtful_bytes_total", here, port.doubtful


def registry_of(survey: Survey) -> CollectorRegistry:
    """Return a registry of the client library that has these figures and no others."""
    registry = CollectorRegistry()
    registry.register(Exposition(survey))
    return registry
