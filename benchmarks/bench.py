"""The benchmark: QEMU's own virtio-serial and ours in one guest; tables, JSON and a picture of what was measured."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "src"))
sys.path.insert(2, str(Path(__file__).resolve().parents[1] / "tests"))

from arena import Arena
from busy import one_busy_core
from chart import INSTALL, can_draw
from contestants import QEMU, QEMU_WITHOUT_IOEVENTFD, VHOST_USER, VIRTSERIAL
from crowd import PORTS, Crowd, CrowdRun
from embedded import EmbeddedRun
from embedded import measure as measure_embedded
from environment import ROOT, Environment, Watch, look
from measures import MEASURES, Measure, Run
from results import Results
from scale import Figure, allow_descriptors
from scale import measure as measure_scale
from virtserial.daemon.keeper.descriptor_limit import descriptors_for
from virtserial.rig import GuestError, RigUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CONTESTANTS = (QEMU, QEMU_WITHOUT_IOEVENTFD, VIRTSERIAL, VHOST_USER)
CONNECTED_PORTS = "connected_ports"
CROWD = "crowd"
DUPLEX = "duplex"
EMBEDDED = "embedded"
MIGRATION = "migration"
"""Alone, and into no results: `--only migration` prints a table."""
SCALE = "scale"
EMBEDDED_CHUNK = 65536
SCALE_SHAPE = 1000, 4, 2
"""Devices, ports of each, interrupt vectors of each."""
COUNTS = (30, 510)
PAGE = ROOT / "docs" / "performance.md"
MARKS = {
    "quiet": ("<!-- figures: written by ./scripts/bench --write-docs -->\n", "<!-- end of figures -->\n"),
    "busy": ("<!-- figures: written by ./scripts/bench --busy --write-docs -->\n", "<!-- end of busy figures -->\n"),
}
"""By arena: the lines of the page between which its figures are."""


def main(arguments: list[str] | None = None) -> int:
    """Runs what is asked for; exit status 1 when the rig cannot be had or a byte was wrong."""
    chosen = _parser().parse_args(arguments)
    if chosen.only == [MIGRATION]:
        from migration import table

        print(table(chosen.rounds or (3 if chosen.quick else 10)))
        return 0
    if chosen.write_docs and not can_draw():
        print(f"bench: {INSTALL}", file=sys.stderr)
        return 1
    try:
        for results in [Results.from_json(chosen.results.read_text())] if chosen.results else measure_all(chosen):
            # After each part: one that fails does not cost the others.
            chosen.output.mkdir(parents=True, exist_ok=True)
            (chosen.output / "results.json").write_text(results.to_json())
            (chosen.output / "results.md").write_text(results.tables())
    except (GuestError, RigUnavailable) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(results.tables())
    print(f"bench: {chosen.output}/results.json and .md", file=sys.stderr)
    if not can_draw():
        print(f"bench: {INSTALL}; then: bench --results {chosen.output}/results.json", file=sys.stderr)
    elif results.runs:
        (chosen.output / "results.svg").write_text(results.picture())
        print(f"bench: {chosen.output}/results.svg", file=sys.stderr)
    if chosen.write_docs:
        write_docs(results, PAGE)
    return 0


def _parser() -> argparse.ArgumentParser:
    names = [*(measure.name for measure in MEASURES), DUPLEX, CROWD, EMBEDDED, SCALE, CONNECTED_PORTS, MIGRATION]
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--rounds", type=int, help="alternating rounds (default: 7; 3 with --quick)")
    parser.add_argument("--seconds", type=float, help="about how long a run takes on QEMU's device (2; 0.5)")
    parser.add_argument(
        "--quick", action="store_true", help="few short rounds, 100 devices instead of 1000, 30 connected ports"
    )
    parser.add_argument("--busy", action="store_true", help="with a fixed load that takes one core all the time")
    parser.add_argument("--only", action="append", metavar="NAME", choices=names, help=", ".join(names))
    parser.add_argument("--smp", type=int, default=1, help="vCPUs of the guest (default: 1)")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench", metavar="DIR",
                        help="where results.json, results.svg and results.md go (default: build/bench)")  # fmt: skip
    parser.add_argument(
        "--results", type=Path, metavar="FILE", help="show these results of before, measure nothing"
    )
    parser.add_argument(
        "--write-docs", action="store_true", help="put tables and picture into docs/performance.md"
    )
    return parser


def measure_all(chosen: argparse.Namespace) -> Iterator[Results]:
    """Runs the benchmark as the options say: all that is measured so far, after each part."""
    rounds = chosen.rounds or (3 if chosen.quick else 7)
    seconds = chosen.seconds or (0.5 if chosen.quick else 2)
    measures = [measure for measure in MEASURES if not chosen.only or measure.name in chosen.only]

    def wanted(name: str) -> bool:
        return not chosen.only or name in chosen.only

    def crowds() -> list[CrowdRun]:
        return [
            run
            for ports, name in ((1, DUPLEX), (PORTS, CROWD))
            if wanted(name)
            for run in measure_crowd(ports, rounds, 2 * seconds, chosen.smp)
        ]

    counts = COUNTS[:1] if chosen.quick else COUNTS
    parts = (
        (wanted(CONNECTED_PORTS), "connected_ports", partial(count_connected_ports, counts)),
        (wanted(DUPLEX) or wanted(CROWD), "crowd", crowds),
        (wanted(EMBEDDED), "embedded", partial(measure_embedded_guest, rounds, seconds)),
        (wanted(SCALE), "scale", partial(measure_many_devices, rounds, chosen.quick)),
    )
    with ExitStack() as load:
        if chosen.busy:
            load.enter_context(one_busy_core())
        environment, runs = measure_ports(measures, rounds, seconds, chosen)
        results = Results(environment, {each.name: each.meaning for each in CONTESTANTS}, runs, [])
        yield results
        for is_wanted, part, measure in parts:
            if is_wanted:
                results = replace(results, **{part: measure()})
                yield results


def measure_ports(
    measures: Sequence[Measure], rounds: int, seconds: float, chosen: argparse.Namespace
) -> tuple[Environment, list[Run]]:
    """One port of each contestant, one at a time, alternating."""
    with Arena(CONTESTANTS, smp=chosen.smp) as arena:
        amounts = [(measure, arena.calibrate(measure, seconds)) for measure in measures]
        watch, runs = Watch(), []
        for run in arena.rounds(amounts, rounds):
            runs.append(run)
            _progress(f"round {run.round + 1} of {rounds}: {run.measure} {run.contestant}")
        _progress("")
        return look(arena, watch.conditions(), chosen.busy), runs


def measure_crowd(ports: int, rounds: int, seconds: float, smp: int) -> list[CrowdRun]:
    """Ports of QEMU's device and of ours, both ways at once, in turns."""
    runs = []
    with Crowd((QEMU, VIRTSERIAL), ports=ports, smp=smp) as crowd:
        for run in crowd.rounds(rounds, seconds):
            runs.append(run)
            _progress(f"round {run.round + 1} of {rounds}: {ports} ports of {run.contestant}, both ways")
    _progress("")
    return runs


def measure_embedded_guest(rounds: int, seconds: float) -> list[EmbeddedRun]:
    """Our driver on our device, without a VM, beside a pair of sockets."""
    runs = []
    for run in measure_embedded(rounds, seconds / 2, EMBEDDED_CHUNK):
        runs.append(run)
        _progress(f"round {run.round + 1} of {rounds}: {run.direction}, {run.way}")
    _progress("")
    return runs


def measure_many_devices(rounds: int, quick: bool) -> list[Figure]:
    """Start-up, memory and idle cost of many devices in one process."""
    devices, ports, vectors = SCALE_SHAPE
    limit = allow_descriptors()
    devices = devices // 10 if quick else devices
    # Fewer where the system allows fewer descriptors; the figures' names say how many.
    while devices > 1 and descriptors_for((devices + 1) * ports) > limit:
        devices -= 1
    figures = []
    for figure in measure_scale(devices, ports, vectors, rounds):
        figures.append(figure)
        _progress(figure.name)
    _progress("")
    return figures


def count_connected_ports(counts: Sequence[int]) -> list[tuple[int | str, ...]]:
    """The table of ports that are connected before the guest's driver starts; one boot for each row."""
    from support.guests.connected_ports import connected_at_boot  # tests/interop
    from support.guests.host_device import QemuDevice, VirtserialDevice

    rows: list[tuple[int | str, ...]] = []
    for count in counts:
        for name, device in ((QEMU.name, QemuDevice()), (VIRTSERIAL.name, VirtserialDevice())):
            _progress(f"{count} connected ports: {name}")
            try:
                seen = connected_at_boot(device, count)
            except Exception as error:  # the rounds before are not lost for one boot; the table says it
                rows.append((count, name, f"failed: {str(error).splitlines()[0]}", "", "", ""))
            else:
                rows.append((count, name, seen.ports, seen.named, seen.connected, seen.delivered))
    _progress("")
    return rows


def write_docs(results: Results, page: Path) -> None:
    """Puts the tables between the page's marks, and the picture beside the page."""
    arena = results.environment.arena
    first, last = MARKS[arena]
    before, begin, rest = page.read_text().partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise SystemExit(f"bench: {page} has no lines {first.strip()!r} and {last.strip()!r}")
    picture = page.with_name(f"{page.stem}{'' if arena == 'quiet' else '-busy'}.svg")
    picture.write_text(results.picture())
    shown = f"\n![Bars of the figures below]({picture.name})\n\n{results.tables()}\n"
    page.write_text(f"{before}{begin}{shown}{end}{after}")


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
