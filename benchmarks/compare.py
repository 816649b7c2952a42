"""QEMU's own device and ours in one guest, quickly, for a look while tuning.

    python3 benchmarks/compare.py --rounds 3 --seconds 2 --only g2h_32k
    python3 benchmarks/compare.py --against ~/other-tree/src     # ours beside ours from another source tree as well
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from arena import Arena  # noqa: E402
from contestants import QEMU, VIRTSERIAL, Contestant  # noqa: E402
from measures import MEASURES, Measure, Run  # noqa: E402
from ratios import paired_ratio, summarize  # noqa: E402


def print_measure(measure: Measure, contestants: tuple[Contestant, ...], runs: list[Run]) -> None:
    """One line per device: rate with range, ratio to the first with its interval, CPU."""
    scale = 1e6 if measure.unit == "MB/s" else 1
    per = "s/GB" if measure.unit == "MB/s" else "us/trip"
    cpu_scale = 1e9 if measure.unit == "MB/s" else 1e6
    by_device = {each.name: [run for run in runs if run.contestant == each.name] for each in contestants}
    first = by_device[contestants[0].name]
    print(f"{measure.title} ({len(first)} rounds of {first[0].amount / scale:.0f} {measure.unit[:-2]})")
    for name, mine in by_device.items():
        rate = summarize([run.rate / scale for run in mine])
        ratio = paired_ratio([run.rate for run in mine], [run.rate for run in first])
        device, ours, vcpu = (
            summarize([getattr(run.cpu, what) * cpu_scale / run.amount for run in mine]).median
            for what in ("device", "processes", "vcpus")
        )
        trips = f"  p50 {mine[0].trip_us[0]:.0f} p99 {mine[0].trip_us[1]:.0f} us" if mine[0].trip_us else ""
        print(
            f"  {name:16} {rate.median:8.1f} [{rate.lowest:.0f}-{rate.highest:.0f}] {measure.unit}"
            f"  x {ratio.median:.2f} [{ratio.low:.2f}-{ratio.high:.2f}]"
            f"  device CPU {device:.2f} (own {ours:.2f}), vCPU {vcpu:.2f} {per}{trips}",
            flush=True,
        )


def main(arguments: list[str] | None = None) -> int:
    """Runs the chosen measures and prints them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [measure.name for measure in MEASURES]
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2, help="about how long each run takes on the first device")
    parser.add_argument("--only", action="append", choices=names, help="a measure (repeatable; default: all)")
    parser.add_argument("--against", action="append", default=[], type=Path, metavar="SRC",
                        help="also ours from another source tree's src folder")  # fmt: skip
    parser.add_argument("--qemu", action="append", default=[], metavar="PROPERTIES",
                        help="also QEMU's own with these properties, as event_idx=off,packed=on")  # fmt: skip
    parser.add_argument("--ours", action="append", default=[], metavar="PROPERTIES",
                        help="also ours with these properties")  # fmt: skip
    parser.add_argument("--smp", type=int, default=1)
    chosen = parser.parse_args(arguments)
    contestants = [QEMU, VIRTSERIAL]
    contestants += [Contestant(f"ours@{source.parent.name}", source=source.resolve()) for source in chosen.against]
    contestants += [Contestant(f"qemu {text}", f",{text}") for text in chosen.qemu]
    contestants += [Contestant(f"ours {text}", f",{text}", VIRTSERIAL.source) for text in chosen.ours]
    with Arena(contestants, smp=chosen.smp) as arena:
        print(f"{arena.accelerator}, guest up in {arena.guest.boot_seconds:.1f} s", flush=True)
        for measure in MEASURES:
            if chosen.only and measure.name not in chosen.only:
                continue
            amount = arena.calibrate(measure, chosen.seconds)
            runs = [
                arena.run(measure, (number + turn) % len(contestants), amount, turn)
                for turn in range(chosen.rounds)
                for number in range(len(contestants))
            ]
            print_measure(measure, arena.contestants, runs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
