"""The metrics: names, kinds, labels and what each is; docs/metrics.md and the dashboard name these and no others."""

from __future__ import annotations

from typing import Final, NamedTuple

VM: Final = ("vm", "user")
PROCESS: Final = (*VM, "process")
CONTROLLER: Final = (*VM, "controller")
PORT: Final = (*CONTROLLER, "number", "port")
WAY: Final = (*PORT, "direction")


class Metric(NamedTuple):
    """A metric.

    Attributes:
        kind: "gauge", "counter" or "histogram".
        labels: of each of its series.
        what: one line.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    what: str


METRICS: Final = (
    Metric("virtserial_vm_up", "gauge", VM, "1 if the VM's keeper answers within 3 s with what makes sense"),
    Metric("virtserial_vm_answer_seconds", "gauge", VM, "how long the keeper took to answer: its loop's latency"),
    Metric("virtserial_worker_up", "gauge", VM, "1 if there is a worker, also while it is being replaced"),
    Metric("virtserial_worker_restarts_total", "counter", VM, "workers that died and were replaced"),
    Metric("virtserial_worker_upgrades_total", "counter", VM, "workers that were replaced on request"),
    Metric("virtserial_keeper_upgrades_total", "counter", VM, "keepers that were replaced on request"),
    Metric("virtserial_worker_latency_seconds", "histogram", VM,
           "how long the worker took to answer its keeper: its loop's latency; asked at each scrape, and each second "
           "while something comes for it"),
    Metric("virtserial_worker_unanswered_seconds", "gauge", VM,
           "for how long the worker has not answered its keeper's last question"),
    Metric("virtserial_resident_memory_bytes", "gauge", PROCESS,
           "memory of the keeper and of the worker; what they share counts in both"),
    Metric("virtserial_cpu_seconds_total", "counter", PROCESS, "processor time of the keeper and of the worker"),
    Metric("virtserial_controller_vmm_connected", "gauge", CONTROLLER, "1 while a VMM is connected"),
    Metric("virtserial_controller_ports", "gauge", CONTROLLER, "ports that are plugged in"),
    Metric("virtserial_controller_max_ports", "gauge", CONTROLLER, "places for ports"),
    Metric("virtserial_port_guest_open", "gauge", PORT, "1 while the guest has the port open"),
    Metric("virtserial_port_clients", "gauge", PORT, "clients at the host's end; no series where only they know (pty)"),
    Metric("virtserial_port_bytes_total", "counter", WAY, "bytes moved, to_host and to_guest"),
    Metric("virtserial_port_messages_total", "counter", WAY,
           "buffers (descriptor chains) moved, to_host and to_guest, since the driver's last reset"),
    Metric("virtserial_port_throttled_seconds_total", "counter", PORT,
           "time for which the guest had to wait because the host's end took nothing"),
    Metric("virtserial_port_discarded_bytes_total", "counter", PORT, "bytes of the guest that nobody on the host took"),
    Metric("virtserial_port_dropped_bytes_total", "counter", PORT,
           "bytes that reached nobody else: of the host, or console output beyond the backlog"),
    Metric("virtserial_port_doubtful_bytes_total", "counter", PORT,
           "bytes that were moved twice or not at all, because a worker was killed over them"),
    Metric("virtserial_exporter_vms", "gauge", (), "VMs that run here"),
    Metric("virtserial_exporter_left_out", "gauge", ("what",), "vms and ports beyond the limits, which have no series"),
    Metric("virtserial_exporter_survey_seconds", "gauge", (), "how long it took to ask all keepers"),
)  # fmt: skip

LATENCY: Final = "virtserial_worker_latency_seconds"
