"""Statistics and report of the benchmark program, without mounting anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import cli, measure, report
from benchmarks.data import MIB, RandomData
from benchmarks.errors import BenchmarkError
from benchmarks.figures import Figure, Sample, advantage, spread, summarise
from benchmarks.runner import figures, rotated
from benchmarks.systems import Plain
from benchmarks.workloads import WORKLOADS
from benchmarks.workloads.imaging import MIX, mixed_sizes

RATE = Figure("rate", "MB/s", "higher is better")
TIME = Figure("time", "s", "lower is better", higher_is_better=False)


def samples(figure: Figure, **by_system: list[float]) -> list[Sample]:
    return [
        Sample(figure.name, system, number, value, 1.0, None if system == "plain" else value / 100)
        for system, values in by_system.items()
        for number, value in enumerate(values)
    ]


def test_medians_and_ratios_of_a_rate() -> None:
    found = samples(RATE, cryptfs=[90, 110, 100], gocryptfs=[50, 40, 60], securefs=[80], plain=[400])
    summary = summarise(RATE, found)
    assert summary is not None
    assert summary.medians == {"cryptfs": 100, "gocryptfs": 50, "securefs": 80, "plain": 400}
    assert summary.ratios == {"gocryptfs": 2.0, "securefs": 1.25, "plain": 0.25, "best": 1.25}
    assert summary.spread == pytest.approx(0.4)
    assert summary.cpu_medians == {"cryptfs": 1.0, "gocryptfs": 0.5, "securefs": 0.8}


def test_a_ratio_above_one_means_better_where_less_is_better() -> None:
    summary = summarise(TIME, samples(TIME, cryptfs=[2.0], gocryptfs=[4.0], securefs=[1.0]))
    assert summary is not None
    assert summary.ratios == {"gocryptfs": 2.0, "securefs": 0.5, "best": 0.5}


def test_without_cryptfs_there_are_medians_and_no_ratios() -> None:
    summary = summarise(RATE, samples(RATE, gocryptfs=[1.0], plain=[2.0]))
    assert summary is not None
    assert summary.medians == {"gocryptfs": 1.0, "plain": 2.0}
    assert summary.ratios == {}


def test_a_figure_without_samples_has_no_summary() -> None:
    assert summarise(RATE, samples(TIME, cryptfs=[1.0])) is None


def test_spread_and_advantage_of_nothing() -> None:
    assert spread([5.0]) == 0
    assert spread([0.0, 0.0]) == 0
    assert advantage(1.0, 0.0, higher_is_better=True) == float("inf")


def test_what_others_took_is_a_share_of_one_core() -> None:
    taken = [
        Sample("rate", "plain", 0, 5.0, 2.0, None, 1.0),
        Sample("rate", "cryptfs", 0, 5.0, 4.0, 0.5, 6.0),
    ]
    (summary,) = report.summaries([RATE], taken)
    assert summary.others == 1.0
    assert "100%" in report.text_report([summary], ["cryptfs", "plain"])


def test_every_system_begins_a_round() -> None:
    systems = [Plain(Path(name)) for name in "abc"]
    assert [rotated(systems, number)[0] for number in range(4)] == [*systems, systems[0]]
    assert set(rotated(systems, 2)) == set(systems)


def test_table_is_aligned_markdown() -> None:
    lines = report.table([["figure", "cryptfs"], ["a", "1"], ["longer-name", "12.5"]]).splitlines()
    assert lines[0] == "| figure      | cryptfs |"
    assert lines[1] == "| ----------- | ------: |"
    assert lines[3] == "| longer-name |    12.5 |"


@pytest.mark.parametrize(
    ("value", "text"), [(0.1234, "0.12"), (9.876, "9.88"), (12.34, "12.3"), (1234.5, "1,234")]
)
def test_number(value: float, text: str) -> None:
    assert report.number(value) == text


def test_text_report_shows_medians_ratios_and_gaps() -> None:
    found = report.summaries([RATE, TIME], samples(RATE, cryptfs=[30.0], gocryptfs=[20.0]))
    text = report.text_report(found, ["cryptfs", "gocryptfs", "securefs"])
    row = next(line for line in text.splitlines() if line.startswith("| rate"))
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "rate", "MB/s", "30.0", "20.0", "", "1.50", "1.50", "0%",
    ]  # fmt: skip
    assert "| time" not in text


def test_json_report_keeps_every_sample(tmp_path: Path) -> None:
    taken = samples(RATE, cryptfs=[1.0, 3.0], plain=[4.0])
    document = report.json_report(taken, report.summaries([RATE], taken), {"date": "2026-01-01"})
    report.write_json(tmp_path / "out.json", document)
    read = json.loads((tmp_path / "out.json").read_text())
    assert read["date"] == "2026-01-01"
    assert [sample["value"] for sample in read["samples"]] == [1.0, 3.0, 4.0]
    assert read["figures"][0]["medians"] == {"cryptfs": 2.0, "plain": 4.0}
    assert read["figures"][0]["unit"] == "MB/s"


def test_choose() -> None:
    assert cli.choose(None, ["a", "b"], "letter") == ["a", "b"]
    assert cli.choose("b, a,b", ["a", "b"], "letter") == ["b", "a"]
    for wrong in ("c", "a,c", ","):
        with pytest.raises(BenchmarkError, match="Unknown letter"):
            cli.choose(wrong, ["a", "b"], "letter")


def test_unknown_workload_ends_with_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise BenchmarkError("No such thing.")

    assert cli.guarded(fail) == 1
    assert capsys.readouterr().err == "benchmarks: No such thing.\n"


def test_figures_have_names_of_their_own_and_stand_in_the_readme() -> None:
    names = [figure.name for figure in figures(list(WORKLOADS.values()))]
    assert len(names) == len(set(names))
    readme = (Path(cli.__file__).parent / "README.md").read_text()
    undocumented = [
        figure.name
        for workload in WORKLOADS.values()
        for figure in workload.figures
        if f"`{figure.name}`" not in readme
    ]
    assert undocumented == []


def test_pieces_differ_by_key_and_add_up() -> None:
    data = RandomData(4 * MIB)
    pieces = list(data.pieces(7, 2 * MIB + 5, MIB))
    assert [len(piece) for piece in pieces] == [MIB, MIB, 5]
    assert data.piece(1, 4096) != data.piece(2, 4096)
    with pytest.raises(ValueError, match="too large"):
        data.piece(0, 3 * MIB)


def test_mix_scales_counts_and_then_sizes() -> None:
    full = mixed_sizes(1)
    assert sorted(full) == sorted(size for count, size in MIX for _ in range(count))
    tenth = mixed_sizes(0.1)
    assert 45_000_000 in tenth  # the single large file, at a tenth of its size
    assert sum(tenth) == pytest.approx(sum(full) / 10, rel=0.02)


def test_meter_counts_the_amount_per_second() -> None:
    meter = measure.Meter("plain", 2, list)
    with meter.timing(RATE, 10):
        pass
    (sample,) = meter.samples
    assert (sample.figure, sample.system, sample.round, sample.cpu_seconds) == ("rate", "plain", 2, None)
    assert sample.value == pytest.approx(10 / sample.seconds)
