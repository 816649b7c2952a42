"""Results: units, ratios against the right device, the file and the page."""

from __future__ import annotations

from dataclasses import replace

import pytest

import bench
from cpu_time import CpuTime
from crowd import CrowdRun
from environment import Conditions, Environment
from measures import Run
from results import Results

ENVIRONMENT = Environment(
    accelerator="TCG",
    qemu="11.1.3",
    guest_kernel="6.1.0",
    vcpus=1,
    host_kernel="6.18",
    processor="a processor",
    cores=2,
    python="3.11.7",
    revision="abcdef",
    date="2026-01-01",
    conditions=Conditions(0.25, 0.5, 0.0),
)


def runs(measure, contestant, seconds, cpu, trip_us=()):
    return [Run(measure, contestant, turn, 1000, each, cpu, trip_us) for turn, each in enumerate(seconds)]


@pytest.fixture
def results():
    return Results(
        ENVIRONMENT,
        {"QEMU": "its own", "virtserial": "ours"},
        [
            *runs("g2h_4k", "QEMU", [2e-5, 4e-5, 2e-5], CpuTime(0, 2e-6, 5e-6)),
            *runs("g2h_4k", "virtserial", [1e-5, 2e-5, 1e-5], CpuTime(0.5e-6, 0.5e-6, 4e-6)),
            *runs("ping_1", "QEMU", [0.5, 0.5, 0.5], CpuTime(0, 0.1, 0.1), (400.0, 900.0, 1000.0)),
            *runs("ping_1", "virtserial", [1.0, 1.0, 1.0], CpuTime(0.3, 0.1, 0.2), (800.0, 1900.0, 2000.0)),
        ],
        [(30, "QEMU", 30, 30, 1, 1), (30, "virtserial", 30, 30, 30, 30)],
        [
            *(CrowdRun("QEMU", turn, 2, (1_000_000, 3_000_000), CpuTime(0, 8e-3, 0)) for turn in range(3)),
            *(CrowdRun("virtserial", turn, 2, (4_000_000, 5_000_000), CpuTime(3e-3, 6e-3, 0)) for turn in range(3)),
        ],
    )


def test_tables_say_rates_costs_and_ratios_of_ours_to_theirs(results):
    tables = results.tables()
    assert (
        "| guest to host, 4 KiB writes, MB/s | 50 [25-50] | 100 [50-100] | **2.00** [2.00-2.00] |" in tables
    )
    assert (
        "| guest to host, 4 KiB writes: device, s/GB | 2.00 [2.00-2.00] | 1.00 [1.00-1.00] | **0.50**"
        in tables
    )
    assert (
        "| guest to host, 4 KiB writes: vCPU beside it, s/GB | 5.00 [5.00-5.00] | 4.00 [4.00-4.00] |"
        in tables
    )
    assert "| round trips of 1 byte, trips/s | 2000 [2000-2000] | 1000 [1000-1000] | **0.50**" in tables
    assert "| round trips of 1 byte, 99th percentile, us | 900 [900-900] | 1900 [1900-1900] |" in tables
    assert "| round trips of 1 byte: device, us/trip | 100 [100-100] | 400 [400-400] | **4.00**" in tables
    assert "| 30 | virtserial | 30 | 30 | 30 | 30 |" in tables
    assert "| QEMU | 2.00 [2.00-2.00] |  | 0.33 [0.33-0.33] | 2.00 [2.00-2.00] |  |" in tables
    ours = "| virtserial | 4.50 [4.50-4.50] | **2.25** [2.25-2.25] | 0.80 [0.80-0.80] | 1.00 [1.00-1.00] | **0.50**"
    assert ours in tables


def test_each_ratio_names_its_two_devices(results):
    names = ("QEMU", "QEMU, ioeventfd=off", "virtserial", "virtserial, vhost-user")
    timed = zip(names, (1e-5, 4e-5, 2e-5, 3e-5), strict=True)
    more = replace(
        results,
        contestants=dict.fromkeys(names, ""),
        runs=[run for name, each in timed for run in runs("g2h_4k", name, [each] * 3, CpuTime(0, each / 10, 0))],
    )
    heads = "| virtserial: x QEMU | virtserial: x QEMU, ioeventfd=off | virtserial, vhost-user: x QEMU |"
    ratios = "| **0.50** [0.50-0.50] | **2.00** [2.00-2.00] | **0.33** [0.33-0.33] |"
    for line in (heads, ratios):
        assert f" {line}\n" in more.tables()


def test_every_table_says_where_its_figures_are_from(results):
    assert results.tables().count(ENVIRONMENT.caption) == results.tables().count("| --- |\n") == 5
    assert ENVIRONMENT.caption.startswith("TCG; QEMU 11.1.3; guest Linux 6.1.0, 1 vCPU; host Linux 6.18, ")


def test_results_file_gives_the_same_tables_and_picture(results):
    again = Results.from_json(results.to_json())
    assert again.tables() == results.tables()
    assert again.picture() == results.picture()


def test_page_keeps_its_words_around_the_figures(results, tmp_path):
    page = tmp_path / "performance.md"
    begin, end = bench.MARKS["quiet"]
    page.write_text(f"before\n{begin}old figures\n{end}after\n")
    bench.write_docs(results, page)
    text = page.read_text()
    assert text.startswith(f"before\n{begin}")
    assert text.endswith(f"{end}after\n")
    assert "old figures" not in text
    assert results.tables() in text
    assert (tmp_path / "performance.svg").read_text() == results.picture()


def test_a_busy_machine_has_figures_and_a_picture_of_its_own(results, tmp_path):
    page = tmp_path / "performance.md"
    begin, end = bench.MARKS["busy"]
    page.write_text(f"before\n{begin}{end}after\n")
    busy = replace(results, environment=replace(ENVIRONMENT, arena="busy"))
    bench.write_docs(busy, page)
    assert "one of them taken by a fixed load" in page.read_text()
    assert (tmp_path / "performance-busy.svg").exists()
    assert Results.from_json(busy.to_json()).environment.arena == "busy"


def test_page_without_marks_is_left_alone(results, tmp_path):
    page = tmp_path / "performance.md"
    page.write_text("no marks\n")
    with pytest.raises(SystemExit, match="has no lines"):
        bench.write_docs(results, page)
    assert page.read_text() == "no marks\n"


def test_the_project_page_has_the_marks():
    text = bench.PAGE.read_text()
    assert [text.count(mark) for marks in bench.MARKS.values() for mark in marks] == [1, 1, 1, 1]
