"""Simulates large clusters that pull an image at once, and writes the table and the plots of docs/cold-start.md.

    python -m bench.simulation [--only TEXT] [--hosts N | --laboratory SECONDS]

With any option, nothing is written but the table on the screen. `make simulate` runs it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.simulation import plots, report
from bench.simulation.scenarios import Outcome, Scenario, faults, laboratory, normal, simulate

DOCS = Path(__file__).parents[2] / "docs"


def main() -> int:
    """Run the simulations. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="simulation", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="only scenarios whose names contain this text")
    parser.add_argument("--hosts", type=int, default=0, help="all scenarios with this many hosts")
    parser.add_argument(
        "--laboratory", type=float, metavar="SECONDS", help="the scenes of the laboratory, with this delay of a hop"
    )
    arguments = parser.parse_args()
    only: str = arguments.only
    hosts: int = arguments.hosts
    hop: float | None = arguments.laboratory
    outcomes: list[Outcome] = []
    for scenario in scenarios(hosts) if hop is None else laboratory(hop):
        if only in scenario.name:
            outcomes.append(simulate(scenario))
            print(report.line(outcomes[-1]), f"{outcomes[-1].seconds:.0f} s", flush=True)
    if not only and not hosts and hop is None:
        report.write_table(outcomes, DOCS / "cold-start.md")
        plots.draw(outcomes, DOCS / "cold-start.png")
    return 0


def scenarios(hosts: int) -> list[Scenario]:
    """Return what is simulated: with `hosts` hosts, or else with the numbers of the report."""
    if hosts:
        return [*normal(hosts), *faults(hosts)]
    pulls = [each for number in (8, 16, 60, 100, 1000, 10_000) for each in normal(number)]
    return [*pulls, *faults(1000)]


if __name__ == "__main__":
    sys.exit(main())
