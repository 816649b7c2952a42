"""QEMU's own device and ours in one guest, quickly, for a look while tuning.

python3 benchmarks/compare.py --rounds 3 --seconds 2 --only g2h_32k
python3 benchmarks/compare.py --against ~/other-tree/src     # and ours from another source tree
python3 benchmarks/compare.py --qemu event_idx=off           # and QEMU's with another property
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "src"))

from arena import Arena
from comparison import Comparison
from contestants import QEMU, SOURCE, VIRTSERIAL, Contestant
from measures import MEASURES, TRIPS


def print_comparison(comparison: Comparison) -> None:
    """One line per device: rate with range, ratio to the first with its interval, CPU time and its ratio."""
    unit = comparison.measure.unit
    reference, *_ = comparison.by_contestant
    runs = comparison.by_contestant[reference]
    print(
        f"{comparison.measure.title}: {len(runs)} rounds of {runs[0].amount / unit.amount_scale:.0f} {unit.amount}"
    )
    for name in comparison.by_contestant:
        rate, faster = comparison.rate(name), comparison.rate_ratio(name, reference)
        dearer = comparison.cost_ratio(name, reference)
        device, own, vcpus = (comparison.cost(name, part).median for part in ("device", "processes", "vcpus"))
        trips = ""
        if unit is TRIPS:
            trips = f"; p50 {comparison.trip_us(name, 0).median:.0f} p99 {comparison.trip_us(name, 1).median:.0f} us"
        print(
            f"  {name:14} {rate.median:7.0f} [{rate.lowest:.0f}-{rate.highest:.0f}] {unit.rate}"
            f"  x {faster.median:.2f} [{faster.low:.2f}-{faster.high:.2f}]; device CPU {device:.2f} (own {own:.2f})"
            f" x {dearer.median:.2f} [{dearer.low:.2f}-{dearer.high:.2f}], vCPU {vcpus:.2f} {unit.cost}{trips}",
            flush=True,
        )


def main(arguments: list[str] | None = None) -> int:
    """Runs the chosen measures and prints each as soon as it is done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [measure.name for measure in MEASURES]
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--seconds", type=float, default=2, help="about how long a run takes on QEMU's device"
    )
    parser.add_argument("--only", action="append", choices=names, help="a measure (repeatable; default: all)")
    parser.add_argument("--against", action="append", default=[], type=Path, metavar="SRC",
                        help="also ours from this src folder of another tree")  # fmt: skip
    parser.add_argument("--qemu", action="append", default=[], metavar="PROPERTIES",
                        help="also QEMU's own with these properties")  # fmt: skip
    parser.add_argument("--ours", action="append", default=[], metavar="PROPERTIES",
                        help="also ours with these properties")  # fmt: skip
    parser.add_argument("--smp", type=int, default=1, help="vCPUs of the guest")
    chosen = parser.parse_args(arguments)
    contestants = [QEMU, VIRTSERIAL]
    sources = [source.resolve() for source in chosen.against]
    contestants += [Contestant(f"@{source.parent.name}", source=source) for source in sources]
    contestants += [Contestant(text, properties=f",{text}") for text in chosen.qemu]
    contestants += [Contestant(f"ours {text}", properties=f",{text}", source=SOURCE) for text in chosen.ours]
    with Arena(contestants, smp=chosen.smp) as arena:
        print(f"{arena.accelerator}, guest up in {arena.guest.boot_seconds:.1f} s", flush=True)
        for measure in MEASURES:
            if not chosen.only or measure.name in chosen.only:
                amount = arena.calibrate(measure, chosen.seconds)
                print_comparison(
                    Comparison.of(measure, list(arena.rounds([(measure, amount)], chosen.rounds)))
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
