"""The simulation of a cluster: small runs, whose figures follow from the design, and its report."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from bench.simulation import report
from bench.simulation.network import NOBODY, Network, Rates
from bench.simulation.scenarios import Outcome, Scenario, faults, laboratory, normal, simulate

MIB = 1024 * 1024


def outcome_of(name: str, hosts: int = 12) -> Outcome:
    [scenario] = [each for each in [*normal(hosts), *faults(hosts)] if each.name == name]
    return simulate(scenario)


def test_links_are_shared_evenly_and_what_one_flow_leaves_another_one_uses() -> None:
    network = Network(3, [100], Rates(host=30.0, upstream=60.0))
    network.source[:] = [network.upstream, network.upstream, NOBODY]
    network.down[0] = 10.0
    network.step(1.0)
    assert list(network.offset) == [10.0, 30.0, 0.0]
    network.source[2] = 1
    network.step(1.0)
    assert network.offset[2] == 30.0, "what its source had before this step"
    assert list(network.sent) == [0.0, 30.0, 0.0, 80.0]


@pytest.mark.parametrize("name", ["1 layer of 64 MiB", "4 layers of 16 MiB"])
def test_each_uplink_is_used_once_and_upstream_sends_one_copy(name: str) -> None:
    outcome = outcome_of(name)
    assert outcome.copies == pytest.approx(1.0)
    assert outcome.failed == 0
    assert outcome.times[-1] < 1.25
    assert outcome.uploads[-1] < 1.05
    assert np.all(outcome.uploads >= 0)


def test_most_hosts_that_are_too_many_for_a_chain_are_done_as_early_as_in_one() -> None:
    outcome = outcome_of("1 layer of 64 MiB", 90)
    assert outcome.copies == pytest.approx(1.0)
    assert np.median(outcome.times) < 1.25
    assert outcome.times[-1] < 1.9


def test_the_scenes_of_the_laboratory_count_packet_headers_and_longer_hops() -> None:
    times = [simulate(laboratory(hop)[0]).times[-1] for hop in (0.02, 0.2)]
    assert 1514 / 1448 < times[0] < times[1] < 1.3


@pytest.mark.parametrize(
    ("name", "copies", "last"),
    [
        ("a quarter is killed midway", 1.5, 1.5),
        ("the first feeder is killed", 1.5, 1.5),
        ("the first feeder is frozen", 1.5, 2.0),
        ("one slow uplink", 1.01, 1.5),
        ("upstream is slow", 1.01, 20 * 1.15),
        ("upstream is frozen for 10 s", 1.01, 3.5),
        ("upstream denies one host", 1.01, 3.5),
        ("the home of the layer is killed", 2.01, 2.5),
        ("two halves know only themselves", 2.01, 2.5),
    ],
)
def test_a_fault_costs_no_more_than_the_design_says(name: str, copies: float, last: float) -> None:
    outcome = outcome_of(name)
    assert outcome.copies <= copies
    assert outcome.times[-1] <= last
    assert outcome.failed == 0


def test_if_upstream_is_dead_all_hosts_know_soon() -> None:
    scenario = next(each for each in faults(12) if each.name == "upstream is dead from the start")
    outcome = simulate(scenario)
    simulated_seconds = outcome.times[-1] * sum(scenario.sizes) / scenario.rates.host
    assert outcome.failed == 0
    assert simulated_seconds <= 40


def test_the_table_stands_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n", encoding="utf-8")
    outcome = simulate(Scenario("a small one", 3, (MIB,)))
    report.write_table([outcome], page)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert report.line(outcome) in text
    with pytest.raises(ValueError, match="does not have the lines"):
        report.write_table([outcome], _without_marks(page))


def test_the_plots_are_drawn(tmp_path: Path) -> None:
    """Only this test imports matplotlib, which takes half a second: each worker of pytest imports this file."""
    outcome = simulate(Scenario("a small one", 3, (MIB,)))
    faulty = replace(outcome, scenario=replace(outcome.scenario, expected="something"))
    import_module("bench.simulation.plots").draw([outcome, faulty], tmp_path / "plots.png")
    assert (tmp_path / "plots.png").read_bytes().startswith(b"\x89PNG")


def _without_marks(page: Path) -> Path:
    page.write_text("nothing", encoding="utf-8")
    return page
