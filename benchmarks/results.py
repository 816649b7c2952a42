"""What one run of the benchmark has found: kept as JSON, shown as tables and as a picture."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chart import Panel, bar_chart
from comparison import Comparison
from contestants import VIRTSERIAL
from crowd import CrowdRun, summarize_crowd
from embedded import PAIR, EmbeddedRun, summarize_embedded
from environment import Environment
from measures import BYTES, MEASURES, TRIPS, Run, Unit
from scale import Figure

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ratios import Ratio, Summary


@dataclass(frozen=True)
class Results:
    """The figures and where they are from.

    Attributes:
        environment: machine and programs.
        contestants: names of the devices, QEMU's before ours, to a word on what they are.
        runs: every run that counts.
        connected_ports: rows of the table of ports that are connected at boot: requested, device, ports, named,
            connected, delivered.
        crowd: the runs of one or many ports both ways at once.
        embedded: the runs of the embedded guest and of the pair of sockets beside it.
        scale: start-up, memory and idle cost of many devices.
    """

    environment: Environment
    contestants: dict[str, str]
    runs: Sequence[Run]
    connected_ports: Sequence[tuple[int | str, ...]]
    crowd: Sequence[CrowdRun] = ()
    embedded: Sequence[EmbeddedRun] = ()
    scale: Sequence[Figure] = ()

    def to_json(self) -> str:
        """The results file: the runs as they were, and the summaries a reader would make of them."""
        content = {
            "environment": self.environment.as_json(),
            "contestants": self.contestants,
            "summaries": [self._summary(comparison) for comparison in self.comparisons()],
            "connected_ports": self.connected_ports,
            "runs": [run.as_json() for run in self.runs],
            "crowd": [run.as_json() for run in self.crowd],
            "embedded": [run.as_json() for run in self.embedded],
            "scale": [figure._asdict() for figure in self.scale],
        }
        return json.dumps(content, indent=1, default=vars) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Results:
        """Reads a results file; its summaries are made anew."""
        content = json.loads(text)
        return cls(
            Environment.from_json(content["environment"]),
            content["contestants"],
            [Run.from_json(run) for run in content["runs"]],
            [tuple(row) for row in content["connected_ports"]],
            [CrowdRun.from_json(run) for run in content.get("crowd", ())],
            [EmbeddedRun(**run) for run in content.get("embedded", ())],
            [Figure(**figure) for figure in content.get("scale", ())],
        )

    def comparisons(self, unit: Unit | None = None) -> list[Comparison]:
        """The measures that were run, those of a unit or all."""
        done = {run.measure for run in self.runs}
        chosen = [each for each in MEASURES if each.name in done and unit in (None, each.unit)]
        return [Comparison.of(measure, self.runs) for measure in chosen]

    def _pairs(self) -> dict[str, tuple[str, str]]:
        """Whose figures are divided by whose, by the column's head: the first of ours by each of QEMU's, the others of
        ours by the first."""
        ours = [name for name in self.contestants if name.startswith(VIRTSERIAL.name)]
        theirs = [name for name in self.contestants if name not in ours]
        pairs = [(ours[0], each) for each in theirs] + [(each, theirs[0]) for each in ours[1:]]
        return {f"{name}: x {reference}": (name, reference) for name, reference in pairs}

    def _summary(self, comparison: Comparison) -> dict[str, Any]:
        names = list(self.contestants)
        return {
            "measure": comparison.measure.name,
            "title": comparison.measure.title,
            "rate_unit": comparison.measure.unit.rate,
            "cost_unit": comparison.measure.unit.cost,
            "rate": {name: comparison.rate(name) for name in names},
            "device_cpu": {name: comparison.cost(name) for name in names},
            "vcpu_cpu": {name: comparison.cost(name, "vcpus") for name in names},
            "rate_ratio": {head: comparison.rate_ratio(*pair) for head, pair in self._pairs().items()},
            "device_cpu_ratio": {head: comparison.cost_ratio(*pair) for head, pair in self._pairs().items()},
        }

    def tables(self) -> str:
        """Markdown: throughput, round trips, CPU time and connected ports, each under a line on its origin."""
        lines = list(self._heads())
        for title, table in (
            ("Throughput and round trips", self._rate_table()),
            ("Time of one round trip", self._trip_table()),
            ("CPU time", self._cost_table()),
            ("Ports both ways at once", self._crowd_table()),
            ("The embedded guest", self._embedded_table()),
            ("Start, memory, and many devices in one process", self._scale_table()),
            ("Connected ports at boot", self._connected_table()),
        ):
            if table:
                lines += ["", f"### {title}", "", f"{self.environment.caption}.", "", *table]
        return "\n".join(lines) + "\n"

    def _heads(self) -> Iterator[str]:
        if self.runs:
            rounds = 1 + max(run.round for run in self.runs)
            yield f"{rounds} alternating rounds in one guest. A figure is the median [lowest-highest]; a ratio of two"
            yield "devices is the median of the rounds' ratios with its 90 % bootstrap interval. The devices:"
            yield ""
            yield from (f"- **{name}**: {what}" for name, what in self.contestants.items())

    def _rate_table(self) -> list[str]:
        names = list(self.contestants)
        rows = []
        for comparison in self.comparisons():
            rates = [_summary_text(comparison.rate(name)) for name in names]
            ratios = [_ratio_text(comparison.rate_ratio(*pair)) for pair in self._pairs().values()]
            rows.append([f"{comparison.measure.title}, {comparison.measure.unit.rate}", *rates, *ratios])
        return _table(["", *names, *self._pairs()], rows)

    def _trip_table(self) -> list[str]:
        rows = []
        for comparison in self.comparisons(TRIPS):
            for place, what in enumerate(("median", "99th percentile")):
                times = [_summary_text(comparison.trip_us(name, place)) for name in self.contestants]
                rows.append([f"{comparison.measure.title}, {what}, us", *times])
        return _table(["", *self.contestants], rows)

    def _cost_table(self) -> list[str]:
        names = list(self.contestants)
        rows = []
        for comparison in self.comparisons():
            title, unit = comparison.measure.title, comparison.measure.unit.cost
            costs = [_summary_text(comparison.cost(name)) for name in names]
            ratios = [_ratio_text(comparison.cost_ratio(*pair)) for pair in self._pairs().values()]
            rows.append([f"{title}: device, {unit}", *costs, *ratios])
            vcpus = [_summary_text(comparison.cost(name, "vcpus")) for name in names]
            rows.append([f"{title}: vCPU beside it, {unit}", *vcpus, *("" for _ in ratios)])
        return _table(["", *names, *self._pairs()], rows)

    def _crowd_table(self) -> list[str]:
        rows = []
        reference = ""
        for ports in sorted({run.ports for run in self.crowd}):
            summaries = summarize_crowd([run for run in self.crowd if run.ports == ports])
            reference = next(iter(summaries))
            rows += [
                [
                    str(ports),
                    name,
                    _summary_text(each.rate),
                    _ratio_text(each.rate_ratio) if name != reference else "",
                    _summary_text(each.evenness) if ports > 1 else "",
                    _summary_text(each.cost),
                    _ratio_text(each.cost_ratio) if name != reference else "",
                ]
                for name, each in summaries.items()
            ]
        times = f"x {reference}"
        head = ["ports", "device", "sum, MB/s", times, "slowest port / fastest", "device CPU, s/GB", times]
        return _table(head, rows)

    def _embedded_table(self) -> list[str]:
        rows = [
            [direction, _summary_text(pair), _summary_text(ours), _ratio_text(ratio)]
            for direction, (pair, ours, ratio) in summarize_embedded(self.embedded).items()
        ]
        return _table(["", f"{PAIR}, MB/s", "virtserial, MB/s", "x the pair"], rows)

    def _scale_table(self) -> list[str]:
        return _table(
            ["", "", ""], [[figure.name, f"{figure.value:.1f}", figure.unit] for figure in self.scale]
        )

    def _connected_table(self) -> list[str]:
        head = [
            "connected before boot",
            "device",
            "ports",
            "with a name",
            "seen connected",
            "a message arrived",
        ]
        return _table(head, [[str(field) for field in row] for row in self.connected_ports])

    def picture(self) -> str:
        """Throughput, round trips and device CPU as SVG."""
        panels = [
            Panel("throughput, MB/s (more is better)", self._bars(BYTES)),
            Panel("round trips per second (more is better)", self._bars(TRIPS)),
            Panel("device CPU seconds per GB (less is better)", self._bars(BYTES, "device")),
            Panel("vCPU seconds per GB beside it (less is better)", self._bars(BYTES, "vcpus")),
        ]
        *guest, host, python, date = self.environment.caption.split("; ")
        notes = [
            "Bars: median of the rounds; lines: lowest to highest.",
            "; ".join(guest),
            host,
            f"{python}; {date}",
        ]
        shown = [panel for panel in panels if panel.groups]
        return bar_chart(
            "virtio-serial: QEMU's own device and virtserial", notes, list(self.contestants), shown
        )

    def _bars(self, unit: Unit, cost: str = "") -> list[tuple[str, list[Summary | None]]]:
        return [
            (
                each.measure.short,
                [each.cost(name, cost) if cost else each.rate(name) for name in self.contestants],
            )
            for each in self.comparisons(unit)
        ]


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    if not rows:
        return []
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _summary_text(summary: Summary) -> str:
    digits = 0 if summary.median >= 20 else 2
    return f"{summary.median:.{digits}f} [{summary.lowest:.{digits}f}-{summary.highest:.{digits}f}]"


def _ratio_text(ratio: Ratio) -> str:
    return f"**{ratio.median:.2f}** [{ratio.low:.2f}-{ratio.high:.2f}]"
