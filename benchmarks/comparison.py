"""All runs of one measure, by contestant, with their summaries and ratios."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ratios import Ratio, Summary, paired_ratio, summarize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from measures import Measure, Run


@dataclass(frozen=True)
class Comparison:
    """The runs of a measure; rates and costs come in the units the measure is written in."""

    measure: Measure
    by_contestant: dict[str, list[Run]]

    @classmethod
    def of(cls, measure: Measure, runs: Sequence[Run]) -> Comparison:
        """Picks the measure's runs, in the order of their rounds."""
        mine = sorted((run for run in runs if run.measure == measure.name), key=lambda run: run.round)
        names = dict.fromkeys(run.contestant for run in mine if run.round == mine[0].round)
        return cls(measure, {name: [run for run in mine if run.contestant == name] for name in names})

    def rates(self, contestant: str) -> list[float]:
        """Rate of each round."""
        return [run.rate / self.measure.unit.amount_scale for run in self.by_contestant[contestant]]

    def costs(self, contestant: str, part: str = "device") -> list[float]:
        """CPU time per amount of each round; part: device, processes, vmm or vcpus."""
        scale = self.measure.unit.cost_scale
        return [getattr(run.cpu, part) * scale / run.amount for run in self.by_contestant[contestant]]

    def rate(self, contestant: str) -> Summary:
        """Median and range of the rates."""
        return summarize(self.rates(contestant))

    def cost(self, contestant: str, part: str = "device") -> Summary:
        """Median and range of the CPU time per amount."""
        return summarize(self.costs(contestant, part))

    def rate_ratio(self, contestant: str, reference: str) -> Ratio:
        """How many times as fast as the reference."""
        return paired_ratio(self.rates(contestant), self.rates(reference))

    def cost_ratio(self, contestant: str, reference: str) -> Ratio:
        """How many times the device CPU of the reference."""
        return paired_ratio(self.costs(contestant), self.costs(reference))

    def trip_us(self, contestant: str, place: int) -> Summary:
        """Median (place 0), 99th percentile (1) or longest (2) round trip of the rounds, in microseconds."""
        return summarize([run.trip_us[place] for run in self.by_contestant[contestant]])
