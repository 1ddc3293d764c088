"""The simulator against queueing theory and published figures."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from rich.console import Console

from training.findings import FINDINGS
from worker.ranking.priority import DEFAULT_POLICY
from worker.simulation import plot
from worker.simulation.reading_room import Department, Discipline, SimulationError
from worker.simulation.simulate import (
    DEFAULT_DEPARTMENT,
    BinormalCases,
    Estimate,
    EvaluatedCases,
    Extent,
    OperatingPoint,
    Row,
    as_records,
    cases_from_aucs,
    default_disciplines,
    read_cases,
    read_department,
    reference_thresholds,
    simulate,
    simulate_files,
    times_to_report,
)
from worker.terminal.tables import simulation_table

pytestmark = pytest.mark.slow  # simulates years

FIFO = Discipline("FIFO")
A_FIRST = Discipline("A first", ahead="A")


def steady(*, load: float, minutes: float, readers: int = 1, **fields: Any) -> Department:
    """The same arrivals and reading times in every hour."""
    return Department((60 * load * readers / minutes,) * 24, (minutes,) * 24, readers=readers, **fields)


def pneumothorax(prevalence: float, **point: float) -> BinormalCases:
    return BinormalCases({"Pneumothorax": OperatingPoint(prevalence, **point)})


def row(rows: list[Row], discipline: str, group: str) -> Row:
    return next(r for r in rows if (r.discipline, r.group) == (discipline, group))


def agrees(estimate: Estimate, truth: float, *, within: float = 0.1) -> None:
    """The interval reaches at most `within` of the truth to each side, and the truth lies within twice that reach."""
    assert estimate.half_width is not None
    assert estimate.half_width <= within * truth
    assert abs(estimate.value - truth) <= 2 * estimate.half_width


# Closed forms: Poisson arrivals, exponential readings, the same all day


@pytest.mark.parametrize(
    ("load", "minutes", "prevalence", "tpf", "fpf"),
    [(0.8, 10.0, 0.10, 0.90, 0.10), (0.6, 4.0, 0.25, 0.70, 0.05)],
)
def test_one_reader_who_finishes_what_he_began_waits_as_cobham_says(load, minutes, prevalence, tpf, fpf):
    days = round(12_000 / (1440 * load / minutes))
    rows = simulate(
        steady(load=load, minutes=minutes),
        cases=pneumothorax(prevalence, tpf=tpf, fpf=fpf),
        disciplines=[FIFO, A_FIRST],
        extent=Extent(days=days, seeds=8, warmup_days=2),
    )
    flagged_load = load * (prevalence * tpf + (1 - prevalence) * fpf)
    fifo = load * minutes / (1 - load)
    flagged = load * minutes / (1 - flagged_load)
    unflagged = flagged / (1 - load)
    agrees(row(rows, "FIFO", "all").wait, fifo)
    agrees(row(rows, "A first", "category A").wait, flagged)
    agrees(row(rows, "A first", "category D").wait, unflagged)
    agrees(row(rows, "A first", "Pneumothorax").wait, tpf * flagged + (1 - tpf) * unflagged)
    agrees(row(rows, "A first", "normal").wait, fpf * flagged + (1 - fpf) * unflagged)
    assert row(rows, "FIFO", "all").saved.value == 0
    # Somebody is read whenever somebody waits, so the order moves waits about but makes none.
    assert abs(row(rows, "A first", "all").saved.value) < 0.02 * fifo


def test_the_figures_of_the_first_example_are_the_known_ones():
    load, minutes, flagged_load = 0.8, 10.0, 0.8 * 0.18
    flagged = load * minutes / (1 - flagged_load)
    assert (flagged, flagged / (1 - load)) == (pytest.approx(9.35, abs=0.01), pytest.approx(46.7, abs=0.05))


def test_one_reader_who_lets_himself_be_interrupted_waits_as_preemptive_resume_says():
    load, minutes, share = 0.7, 5.0, 0.3
    rows = simulate(
        steady(load=load, minutes=minutes),
        cases=pneumothorax(share, auc=1.0),
        thresholds=dict.fromkeys(FINDINGS, 0.5),
        disciplines=[Discipline("A first", ahead="A", preemptive=True)],
        extent=Extent(days=100, seeds=8, warmup_days=2),
    )
    first_load = load * share
    agrees(row(rows, "A first", "Pneumothorax").mean, minutes / (1 - first_load))
    second = minutes / (1 - first_load) + load * minutes / ((1 - first_load) * (1 - load))
    agrees(row(rows, "A first", "normal").mean, second)


def test_two_readers_wait_as_erlang_c_says():
    rows = simulate(
        steady(load=0.8, minutes=10, readers=2),
        cases=pneumothorax(0.1, auc=0.9),
        disciplines=[FIFO],
        extent=Extent(days=100, seeds=8, warmup_days=2),
    )
    offered = 1.6
    must_wait = (offered**2 / 2 / 0.2) / (1 + offered + offered**2 / 2 / 0.2)
    agrees(row(rows, "FIFO", "all").wait, must_wait * 10 / (2 * 0.2))


def test_stat_studies_that_are_read_faster_wait_as_cobham_says():
    share, minutes, arrivals = 0.2, 10.0, 0.08  # per minute
    rows = simulate(
        Department((60 * arrivals,) * 24, (minutes,) * 24, stat_share=share, stat_reading_factor=0.5),
        cases=pneumothorax(0.0),
        disciplines=[FIFO],
        extent=Extent(days=175, seeds=8, warmup_days=2),
    )
    stat_load, load = arrivals * share * 5, arrivals * (share * 5 + (1 - share) * minutes)
    residual = arrivals * (share * 5**2 + (1 - share) * minutes**2)
    agrees(row(rows, "FIFO", "STAT").wait, residual / (1 - stat_load))
    agrees(row(rows, "FIFO", "normal").wait, residual / ((1 - stat_load) * (1 - load)))


# Published figures


def test_the_example_of_fdas_qucad_manual():
    # traffic .8, two readers, a tenth interrupting (5 min), prevalence .1, TPF .9, FPF .1, 10 min, preemptive-resume:
    # the diseased are read 15.72 min earlier, the others 1.7 min later
    mean_minutes = 0.9 * 10 + 0.1 * 5
    rows = simulate(
        Department(
            arrivals_per_hour=(60 * 0.8 * 2 / mean_minutes,) * 24,
            reading_minutes=(10.0,) * 24,
            readers=2,
            stat_share=0.1,
            stat_reading_factor=0.5,
        ),
        cases=pneumothorax(0.1, tpf=0.9, fpf=0.1),
        disciplines=[Discipline("without", preemptive=True), Discipline("with", ahead="A", preemptive=True)],
        extent=Extent(days=60, seeds=8, warmup_days=2),
    )
    agrees(row(rows, "with", "Pneumothorax").saved, 15.72, within=0.15)
    later = row(rows, "with", "normal").saved
    agrees(Estimate(-later.value, later.half_width), 1.7, within=0.15)


def test_the_default_department_gives_the_published_mean_and_maximum_of_fifo():
    # Baltruschat et al. 2021: pneumothorax 80.1 min on average, 890 min at most. Our rates were chosen to come near
    # them, so this holds the default steady and proves nothing about the paper.
    rows = simulate(cases=cases_from_aucs({"Pneumothorax": 0.87}), disciplines=[FIFO], extent=Extent(days=150, seeds=2))
    assert 70 < row(rows, "FIFO", "Pneumothorax").mean.value < 100
    assert 700 < row(rows, "FIFO", "Pneumothorax").maximum.value < 1200


def test_a_maximum_wait_cuts_the_longest_waits_and_costs_little():
    points = {"Pneumothorax": (0.047, 0.87), "Effusion": (0.28, 0.83), "Atelectasis": (0.20, 0.80)}
    cases = BinormalCases({finding: OperatingPoint(*point) for finding, point in points.items()})
    limited = Discipline("limited", by_urgency=True, max_wait_minutes=720)
    rows = simulate(
        cases=cases,
        disciplines=[FIFO, Discipline("urgency", by_urgency=True), limited],
        extent=Extent(days=200, seeds=2),
    )
    without, within = row(rows, "urgency", "normal"), row(rows, "limited", "normal")
    assert within.maximum.value < 0.75 * without.maximum.value
    ptx = [row(rows, name, "Pneumothorax").mean.value for name in ("FIFO", "urgency", "limited")]
    assert ptx[1] < 0.8 * ptx[0]
    assert abs(ptx[2] - ptx[1]) < 5


# The cases


def test_drawn_probabilities_are_calibrated_and_have_the_area_asked_for():
    point = OperatingPoint(prevalence=0.2, auc=0.87)
    present, probability = point.draw(200_000, np.random.default_rng(1))
    assert present.mean() == pytest.approx(0.2, abs=0.005)
    for low, high in ((0.0, 0.1), (0.1, 0.3), (0.3, 0.6), (0.6, 1.0)):
        bin_ = (probability >= low) & (probability < high)
        assert present[bin_].mean() == pytest.approx(probability[bin_].mean(), abs=0.01)
    with_finding, without = probability[present][:20_000], probability[~present][:20_000]
    assert (with_finding > without).mean() == pytest.approx(0.87, abs=0.01)


def test_yes_or_no_readings_become_their_predictive_values():
    present, probability = OperatingPoint(prevalence=0.1, tpf=0.9, fpf=0.1).draw(100_000, np.random.default_rng(2))
    assert np.unique(probability) == pytest.approx([0.01 / 0.82, 0.09 / 0.18])
    assert (probability[present] > 0.4).mean() == pytest.approx(0.9, abs=0.01)
    assert (probability[~present] > 0.4).mean() == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("auc", [0.5, 1.0])
def test_a_useless_and_a_perfect_model_are_both_possible(auc):
    present, probability = OperatingPoint(prevalence=0.3, auc=auc).draw(1000, np.random.default_rng(3))
    assert probability == pytest.approx(present.astype(float) if auc == 1.0 else 0.3)


def test_evaluated_films_keep_their_findings_and_probabilities_together():
    present = np.eye(11, dtype=bool)
    cases = EvaluatedCases(present, present * 0.7)
    drawn, probabilities, film = cases.draw(500, np.random.default_rng(4))
    assert (probabilities == drawn * 0.7).all()
    assert (drawn == present[film]).all()
    assert drawn.any(axis=0).all()


def test_reference_thresholds_flag_the_share_and_never_an_absent_finding():
    cases = pneumothorax(0.05, auc=0.9)
    thresholds = reference_thresholds(cases, share=0.10, rng=np.random.default_rng(5))
    probabilities = cases.draw(50_000, np.random.default_rng(6)).probabilities
    assert (probabilities[:, 3] >= thresholds["Pneumothorax"]).mean() == pytest.approx(0.10, abs=0.01)
    assert thresholds["Hernia"] == 1.0


@pytest.mark.parametrize("wrong", [{"prevalence": 1.2}, {"prevalence": 0.1, "auc": 0.0}, {"prevalence": 0.1, "tpf": 2}])
def test_an_impossible_operating_point_is_refused(wrong):
    with pytest.raises(ValidationError):
        OperatingPoint(**wrong)


def test_an_impossible_area_of_a_checkpoint_is_told_with_its_finding():
    with pytest.raises(SimulationError, match=r"the areas: Edema\.auc: Input should be greater than 0"):
        cases_from_aucs({"Edema": 0.0})
    with pytest.raises(SimulationError, match="Nodule is not a finding"):
        cases_from_aucs({"Nodule": 0.9})


def test_the_times_of_single_studies_are_those_of_the_figures_and_know_their_films():
    present = np.arange(40)[:, None] == np.arange(11)  # a film with each finding, and 29 without any
    cases, extent = EvaluatedCases(present, present * 0.8 + 0.1), Extent(days=20, seeds=1)
    discipline = default_disciplines(DEFAULT_POLICY)[-1]
    times = times_to_report("Pneumothorax", cases=cases, policy=DEFAULT_POLICY, discipline=discipline, extent=extent)
    figures = row(simulate(cases=cases, disciplines=[discipline], extent=extent), discipline.name, "Pneumothorax")
    assert (len(times.minutes), times.minutes.mean()) == (figures.studies, pytest.approx(figures.mean.value))
    assert set(times.film) == {FINDINGS.index("Pneumothorax")}


def test_two_networks_meet_the_same_studies():
    present = np.arange(40)[:, None] % 20 == np.arange(11)
    discipline = default_disciplines(DEFAULT_POLICY)[-1]
    ask: dict[str, Any] = {"policy": DEFAULT_POLICY, "extent": Extent(20, seeds=1)}
    sees, blind = (
        times_to_report("Pneumothorax", cases=EvaluatedCases(present, each), discipline=discipline, **ask)
        for each in (present * 0.8 + 0.1, np.full(present.shape, 0.1))
    )
    assert (sees.film == blind.film).all()
    assert sees.minutes.mean() < blind.minutes.mean()


# What is asked for


def test_readers_who_cannot_keep_up_are_an_error():
    with pytest.raises(SimulationError, match=r"cannot keep up: 1[12]\d%"):
        simulate(steady(load=1.2, minutes=10), cases=pneumothorax(0.1, auc=0.9), extent=Extent(days=20, seeds=1))


@pytest.mark.parametrize("minutes", [10.0, 3.7, 0.9])
def test_a_load_of_1_is_refused_and_one_just_below_is_not_whatever_is_drawn(minutes):
    ask: dict[str, Any] = {"cases": pneumothorax(0.1, auc=0.9), "disciplines": [FIFO]}
    for first_seed in range(5):
        ask["extent"] = Extent(days=1, seeds=2, warmup_days=0, first_seed=first_seed)
        with pytest.raises(SimulationError, match="cannot keep up: 100%"):
            simulate(steady(load=1.0, minutes=minutes), **ask)
        assert simulate(steady(load=0.995, minutes=minutes), **ask)


ONE_IN_FIVE = np.eye(5, 11, dtype=bool) & (np.arange(11) == 0)


@pytest.mark.parametrize("cases", [pneumothorax(0.2, auc=0.9), EvaluatedCases(ONE_IN_FIVE, np.zeros((5, 11)))])
def test_the_load_counts_how_long_abnormal_and_stat_studies_are_expected_to_take(cases):
    # .75 x (.8 + .2 x 3)
    slow: dict[str, Any] = {"stat_share": 0.5, "stat_reading_factor": 0.5, "abnormal_reading_factor": 3.0}
    ask: dict[str, Any] = {
        "cases": cases,
        "disciplines": [FIFO],
        "thresholds": dict.fromkeys(FINDINGS, 1.0),
    }
    for seed in range(5):
        ask["extent"] = Extent(days=1, seeds=1, warmup_days=0, first_seed=seed)
        with pytest.raises(SimulationError, match="cannot keep up: 100%"):
            simulate(steady(load=1.001 / 1.05, minutes=5.0, **slow), **ask)
        assert simulate(steady(load=0.999 / 1.05, minutes=5.0, **slow), **ask)


def test_a_night_without_a_reader_is_worked_off_by_day():
    department = Department((6.0,) * 24, (math.inf,) * 12 + (4.0,) * 12)  # 144 studies a day for 180 places
    assert simulate(department, cases=pneumothorax(0.1, auc=0.9), disciplines=[FIFO], extent=Extent(days=2, seeds=1))


@pytest.mark.parametrize("nothing", [{"seeds": 0}, {"days": 0, "warmup_days": 0}, {"department": "empty"}])
def test_nothing_to_measure_is_an_error(nothing):
    department = Department((0.0,) * 24, (10.0,) * 24) if nothing.pop("department", None) else DEFAULT_DEPARTMENT
    with pytest.raises(SimulationError, match="no study was measured"):
        simulate(department, cases=pneumothorax(0.1, auc=0.9), extent=Extent(**({"days": 2, "seeds": 1} | nothing)))


def test_the_same_seed_gives_the_same_figures():
    cases, extent = pneumothorax(0.1, auc=0.9), Extent(days=5, seeds=2)
    assert simulate(cases=cases, extent=extent) == simulate(cases=cases, extent=extent)
    assert simulate(cases=cases, extent=extent) != simulate(cases=cases, extent=replace(extent, first_seed=1))


def test_the_default_disciplines_are_with_and_without_the_policys_maximum_wait():
    disciplines = default_disciplines(DEFAULT_POLICY)
    assert [d.name for d in disciplines][:4] == ["FIFO", "category", "urgency", "nightread"]
    assert [d.max_wait_minutes for d in disciplines] == [math.inf] * 4 + [720.0] * 3


def test_departments_and_cases_are_read_from_json(tmp_path):
    night = [None] * 7 + [4.0] * 17
    (tmp_path / "department.json").write_text(json.dumps({"reading_minutes": night, "readers": 2}))
    department = read_department(tmp_path / "department.json")
    assert department.reading_minutes[:8] == (math.inf,) * 7 + (4.0,)
    assert (department.readers, department.arrivals_per_hour) == (2, DEFAULT_DEPARTMENT.arrivals_per_hour)
    (tmp_path / "cases.json").write_text(json.dumps({"Edema": {"prevalence": 0.02, "auc": 0.9}}))
    assert read_cases(tmp_path / "cases.json").points == {"Edema": OperatingPoint(0.02, 0.9)}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "cases.json: Invalid JSON"),
        ("[]", "cases.json: Input should be an object"),
        ('{"Nodule": {"prevalence": 0.1}}', "Nodule is not a finding"),
        ('{"Edema": {"auc": 0.1}}', "Edema.prevalence: Field required"),
        ('{"Edema": {"prevalence": 0.1, "sensitivity": 0.9}}', "Edema.sensitivity"),
        ('{"Edema": {"prevalence": NaN}}', "Edema.prevalence: Input should be a finite number"),
        ('{"Edema": 0.1}', "cases.json: Edema: Input should be an object"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_why(tmp_path, text, sentence):
    path = tmp_path / "cases.json"
    path.write_text(text)
    with pytest.raises(SimulationError, match=sentence):
        read_cases(path)


def test_the_command_asks_files_or_a_checkpoints_areas(tmp_path):
    department = tmp_path / "department.json"
    department.write_text(json.dumps({"readers": 2}))
    rows = simulate_files(
        policy=DEFAULT_POLICY,
        department_file=department,
        aucs={"Pneumothorax": 0.9},
        preemptive=True,
        extent=Extent(days=3, seeds=2),
    )
    assert {r.discipline for r in rows} == {d.name for d in default_disciplines(DEFAULT_POLICY)}
    with pytest.raises(SimulationError, match="not known"):
        simulate_files(policy=DEFAULT_POLICY)


def test_a_sites_thresholds_do_not_decide_over_films_that_are_drawn(tmp_path):
    """M/M/1, non-preemptive, at a load of .8: flagged .31 of the films wait 10.64 minutes, the others 53.19."""
    hourly = {"arrivals_per_hour": [4.8] * 24, "reading_minutes": [10.0] * 24, "abnormal_reading_factor": 1,
              "stat_share": 0}  # fmt: skip
    (tmp_path / "department.json").write_text(json.dumps(hourly))
    seen = {"Pneumothorax": {"prevalence": 0.3, "tpf": 0.8, "fpf": 0.1}}
    (tmp_path / "cases.json").write_text(json.dumps(seen))
    site = replace(DEFAULT_POLICY, findings=tuple(replace(row, threshold=0.041) for row in DEFAULT_POLICY.findings))
    files = {"department_file": tmp_path / "department.json", "cases_file": tmp_path / "cases.json"}
    rows = simulate_files(policy=site, **files, extent=Extent(days=400, seeds=4))
    waits = {(row.discipline, row.group): row.wait.value for row in rows}
    assert waits["category", "category A"] == pytest.approx(10.64, rel=0.1)
    assert waits["category", "category D"] == pytest.approx(53.19, rel=0.1)
    assert waits["FIFO", "all"] == pytest.approx(40, rel=0.1)


# The answer for people


@pytest.fixture(scope="module")
def some_rows() -> list[Row]:
    return simulate(cases=pneumothorax(0.1, auc=0.9), disciplines=[FIFO, A_FIRST], extent=Extent(days=5, seeds=2))


def test_the_table_has_a_line_per_group_and_discipline(some_rows):
    console = Console(width=160, record=True)
    console.print(simulation_table(some_rows, groups=["Pneumothorax", "normal", "Hernia"]))
    text = console.export_text()
    assert text.count("A first") == 2
    assert "Hernia" not in text
    assert "±" in text


def test_records_carry_every_figure_with_its_interval(some_rows):
    record = as_records(some_rows)[0]
    assert json.loads(json.dumps(record)) == record
    assert record["mean_minutes"] == some_rows[0].mean.value
    assert record["saved_half_width"] == 0.0


def test_the_plot_is_written(some_rows, tmp_path):
    pytest.importorskip("matplotlib")
    plot.plot(some_rows, tmp_path / "waits.svg")
    svg = (tmp_path / "waits.svg").read_text()
    assert svg.startswith("<?xml")


def test_a_missing_matplotlib_is_told_with_its_remedy(some_rows, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(plot.PlotUnavailable, match="nightread\\[train\\]"):
        plot.plot(some_rows, tmp_path / "waits.svg")
