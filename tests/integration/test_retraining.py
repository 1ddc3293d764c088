"""Retraining: what counts as confirmed, one at a time, resumed after a kill, judged before it is promoted."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from sqlalchemy import delete, select, text, update
from sqlalchemy.exc import DataError, IntegrityError, OperationalError
from sqlalchemy.orm import Session

from db import confirmed, gate, registry, training_runs
from db.base import database_now
from db.models import (
    FINDING_COLUMNS,
    Audit,
    Checkpoint,
    FilmScore,
    GateVerdict,
    Instance,
    Review,
    StudyPriority,
    TrainingRun,
)
from db.session import read_scope, session_scope
from db.training_runs import Busy
from tests.support.confirmed import SIDE, confirm_films, save_beginner
from tests.support.contexts import with_settings
from tests.support.crew import environment_of, running, wait_until
from tests.support.dicom_files import make_film, texture
from tests.support.values import present
from training.checkpoint import Checkpoint as LoadedCheckpoint
from training.checkpoint import Header, build, load_checkpoint, read_header, save_checkpoint
from training.findings import FINDINGS
from training.gate import Check, Result, overall
from training.imaging.dicom import DEFAULT_LIMITS
from training.imaging.preprocessing import Preprocessing
from training.networks import make_network
from training.sampling import STABLE
from worker.checkpoints import promotion
from worker.context import Context
from worker.queue.app import TRAINING, ask_for_retraining, make_app, schedule
from worker.retraining import judging, labels
from worker.retraining import run as retraining
from worker.retraining.judging import judge_by_hand
from worker.retraining.run import Outcome, retrain
from worker.scoring.decoding import DecodeOptions, NetworkInput, decode_film
from worker.scoring.inference import prove

QUICK = {"retrain": {"epochs": 2, "batch_size": 16, "min_new_films": 10, "min_positives": 1, "threads": 1, "nice": 0},
         "gate": {"replicates": 100, "min_positives": 1}}  # fmt: skip
FILMS = 120
once = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # where a second database says no more


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("films")


@pytest.fixture(scope="module")
def beginner(tmp_path_factory) -> Path:
    return save_beginner(tmp_path_factory.mktemp("beginner") / "beginner.safetensors")


@pytest.fixture
def context(make_context, database_url, films, beginner) -> Context:
    """A context with a champion that has learned nothing yet, and a hundred and twenty confirmed films."""
    context = make_context(database_url=database_url, checkpoint=beginner, **QUICK)
    with session_scope(context.engine) as session:
        confirm_films(session, films, films=FILMS)
    return context


def retrained(context: Context, **asked: Any) -> Outcome:
    return present(retrain(context, **asked))


def the_run(context: Context) -> TrainingRun:
    with read_scope(context.engine) as session:
        return training_runs.everything(session)[0]


# ------------------------------------------------------------------------------------------------------------ labels


def opinion(session: Session, finding: str, verdict: str, *, reader: str, minutes_ago: float) -> None:
    at = database_now(session) - timedelta(minutes=minutes_ago)
    session.add(Review(study_id=1, finding=finding, verdict=verdict, reader=reader, reviewed_at=at))
    session.flush()


def labels_of_the_first(session: Session, **asked: bool) -> dict[str, int | None]:
    until = database_now(session)
    films = confirmed.confirmed_films(session, until=until, **{"unconfirmed_is_absent": False, **asked})
    named = [dict(zip(FINDING_COLUMNS, film.labels, strict=True)) for film in films if film.instance_id == 1]
    return named[0] if named else {}


def test_the_latest_opinion_counts_and_not_assessed_makes_a_finding_unknown_again(context):
    with session_scope(context.engine) as session:
        session.execute(text("DELETE FROM review WHERE study_id = 1"))
        opinion(session, "Mass", "present", reader="a", minutes_ago=30)
        opinion(session, "Mass", "absent", reader="b", minutes_ago=20)
        opinion(session, "Hernia", "present", reader="a", minutes_ago=30)
        opinion(session, "Hernia", "not_assessed", reader="b", minutes_ago=10)
        opinion(session, "Edema", "present", reader="a", minutes_ago=5)
        found = labels_of_the_first(session)
    assert found == dict.fromkeys(found) | {"mass": 0, "edema": 1}


def test_a_study_that_was_only_read_counts_when_the_site_says_that_silence_means_absent(context):
    with session_scope(context.engine) as session:
        session.execute(text("DELETE FROM review WHERE study_id = 1"))
        session.execute(update(StudyPriority).where(StudyPriority.study_id == 1).values(read_at=database_now(session)))
    with session_scope(context.engine) as session:
        assert labels_of_the_first(session) == {}
        assert set(labels_of_the_first(session, unconfirmed_is_absent=True).values()) == {0}


def test_what_is_said_after_the_moment_of_asking_does_not_count(context):
    with session_scope(context.engine) as session:
        films = confirmed.confirmed_films(
            session, until=database_now(session) - timedelta(days=30), unconfirmed_is_absent=False
        )
    assert films == []


# ---------------------------------------------------------------------------------------------------------- the lock


def take(session: Session, context: Context, *, cause: str = "hand", attempts: int = 3) -> training_runs.Held | None:
    champion = registry.champion(session)
    assert champion is not None
    wanted = training_runs.Wanted(cause, champion.id, settings={})
    return training_runs.take(session, wanted, holder="a", lease_minutes=1, max_attempts=attempts)


def expire(session: Session) -> None:
    past = database_now(session) - timedelta(minutes=5)
    session.execute(update(TrainingRun).where(TrainingRun.state == "running").values(lease_expires_at=past))


def test_a_second_retraining_finds_the_first_at_work(context):
    with session_scope(context.engine) as session:
        take(session, context)
    with pytest.raises(Busy, match="under way"), session_scope(context.engine) as session:
        take(session, context)
    with pytest.raises(Busy):
        retrain(context)


def test_the_lock_of_a_dead_process_comes_free_and_its_run_is_resumed(context):
    with session_scope(context.engine) as session:
        first = present(take(session, context))
    with session_scope(context.engine) as session:
        expire(session)
    with session_scope(context.engine) as session:
        second = present(take(session, context))
    assert second.resumed
    assert second.run_id == first.run_id
    with pytest.raises(training_runs.Lost), session_scope(context.engine) as session:
        training_runs.note(session, training_runs.Held(first.run_id, "another", resumed=False), stage="train")


def test_a_run_that_dies_again_and_again_is_given_up_and_nothing_begins_it_anew_unasked(context):
    with session_scope(context.engine) as session:
        take(session, context, attempts=1)
        expire(session)
    with session_scope(context.engine) as session:
        assert take(session, context, cause=training_runs.RESUME, attempts=1) is None
    run = the_run(context)
    assert run.state == "failed"
    assert "died 1 times" in present(run.reason)
    assert retrain(context, cause=training_runs.RESUME) is None


def test_the_lineage_of_a_score_is_the_one_query_of_the_docs(context):
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "retraining.md").read_text()
    query = next(block for block in page.split("\n\n") if "FROM finding_score" in block).replace("= 7", "= 1")
    with session_scope(context.engine) as session:
        now, champion = database_now(session), present(registry.champion(session))
        session.add(TrainingRun(state="passed", started_at=now, checkpoint_id=champion.id, data_digest="d" * 64,
                                code_commit="abc", settings={}, counts={}, metrics={}))  # fmt: skip
        session.add(FilmScore(instance_id=1, checkpoint_id=champion.id, scored_at=now,
                              **dict.fromkeys(FINDING_COLUMNS, 0.25)))  # fmt: skip
        session.flush()
        rows = session.execute(text(query)).mappings().all()
    assert len(rows) == len(FINDINGS)
    assert {(row["checkpoint_digest"], row["data_digest"], row["code_commit"]) for row in rows} == {
        (champion.digest, "d" * 64, "abc")
    }


# ------------------------------------------------------------------------------------------------- from end to end


def test_a_retraining_leaves_a_judged_challenger_with_its_lineage_and_the_champion_where_it_was(context):
    before = context.live().digest
    stages: list[str] = []
    outcome = retrained(context, say=stages.append)
    assert stages[1:] == ["labels", "inputs", "mix", "train", "judge"]
    assert outcome.state in ("passed", "undecided", "refused")
    run = the_run(context)
    assert run.state == outcome.state
    assert len(present(run.data_digest)) == 64
    assert run.code_commit
    assert run.counts["films"]["train"] + run.counts["films"]["validation"] + run.counts["films"]["test"] == FILMS
    assert run.metrics["judged"].keys() >= {"gold_champion", "gold_challenger"}
    with read_scope(context.engine) as session:
        challenger = session.get_one(Checkpoint, run.checkpoint_id)
        verdict = present(gate.latest(session, challenger.id))
        checks = gate.checks_of(session, verdict)
        header = read_header(context.file_of(challenger))
    assert challenger.state == ("refused" if verdict.result == "failed" else "challenger")
    assert header.training["split"] != STABLE, "the beginner may have learned from anybody"
    assert verdict.result == overall(cast(Result, check.result) for check in checks)
    assert {"macro_auroc", "time_to_report"} <= {check.name for check in checks}
    assert context.live().digest == before, "only a promotion changes what ranks"
    assert what_is_left(context, run.id) == set(), "patients' pixels and keys go when the run ends"


def what_is_left(context: Context, run: int) -> set[str]:
    """The files of a run's folder that came of patients."""
    folder = context.settings.state_folder / "retraining" / f"run-{run}"
    figures = {"run.json", "metrics.csv", "train.txt", "validation.txt", "test.txt"}
    there = {path.name for path in folder.rglob("*") if path.is_file()}
    return {name for name in there - figures if not name.startswith("events.out.tfevents")}


def test_a_figure_that_is_none_is_null_in_the_record(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,validation/auroc/Hernia\n1,\n2,0.5\n")
    found = retraining.epochs_of(tmp_path / "metrics.csv")
    assert found == [
        {"epoch": 1, "validation/auroc/Hernia": None},
        {"epoch": 2, "validation/auroc/Hernia": 0.5},
    ]
    assert "NaN" not in json.dumps(found)


@once
def test_three_outages_of_the_database_are_no_deaths(context, monkeypatch):
    def away(*_: object, **__: object) -> None:
        raise OperationalError("SELECT", {}, Exception("the server closed the connection"))

    for _ in range(context.settings.max_attempts):
        with monkeypatch.context() as outage:
            outage.setattr(retraining, "fit", away)
            with pytest.raises(OperationalError):
                retrain(context)
        with session_scope(context.engine) as session:
            expire(session)
    assert retrained(context).run_id == 1
    assert the_run(context).state in ("passed", "undecided", "refused")
    assert the_run(context).attempts == 1


@once
def test_a_death_after_an_outage_counts(context, monkeypatch):
    def away(*_: object, **__: object) -> None:
        raise OperationalError("SELECT", {}, Exception("the server closed the connection"))

    with monkeypatch.context() as outage:
        outage.setattr(retraining, "fit", away)
        with pytest.raises(OperationalError):
            retrain(context)
    with session_scope(context.engine) as session:
        expire(session)
    retrain_until("fit", context, monkeypatch)
    with session_scope(context.engine) as session:
        expire(session)
    retrain_until("fit", context, monkeypatch)
    assert the_run(context).attempts == 2


@once
def test_an_internal_error_ends_the_run_and_is_not_tried_again(context, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise DataError("INSERT", {}, Exception("invalid"))

    monkeypatch.setattr(retraining, "fit", broken)
    with pytest.raises(DataError):
        retrain(context)
    assert what_is_left(context, 1) == set()
    assert the_run(context).state == "failed"
    assert the_run(context).reason == "internal error: DataError"


@once
def test_the_same_films_are_not_learned_from_twice(context):
    first = retrained(context)
    again = retrained(context)
    assert again.state == "ended"
    assert f"retraining {first.run_id} learned the same" in present(again.reason)


@once
def test_another_bound_of_the_gate_is_no_reason_to_learn_the_same_again(context):
    first = retrained(context)
    again = retrained(with_settings(context, gate={"finding_auroc": -0.5}))
    assert again.state == "ended"
    assert f"retraining {first.run_id} learned the same" in present(again.reason)
    assert "models judge" in present(again.reason)


@once
def test_a_run_that_was_given_up_leaves_no_film_behind(context, monkeypatch):
    retrain_until("fit", context, monkeypatch)
    assert "images-96.npy" in what_is_left(context, 1)
    with session_scope(context.engine) as session:
        session.execute(update(TrainingRun).values(attempts=context.settings.max_attempts))
        expire(session)
    assert retrain(context, cause=training_runs.RESUME) is None
    assert the_run(context).state == "failed"
    assert what_is_left(context, 1) == set()


def _killed(*_: object, **__: object) -> None:
    raise SystemExit  # which nothing here catches, as nothing catches a kill


def retrain_until(step: str, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retrain, and die where this step would begin."""
    with monkeypatch.context() as dying:
        dying.setattr(retraining, step, _killed)
        with pytest.raises(SystemExit):
            retrain(context)


@once
def test_a_film_in_whose_place_another_lies_is_not_learned_from(context, films):
    path = films / "1.dcm"
    there, was = path.read_bytes(), decode_film(str(path), "2.25.1.1", RULES)
    assert isinstance(was, NetworkInput)
    with session_scope(context.engine) as session:
        session.execute(update(Instance).where(Instance.id == 1).values(pixel_digest=was.pixel_digest))
    try:
        make_film(path, pixels=texture(96, 96), bits=12, SOPInstanceUID="2.25.1.1")
        retrain(context)
        assert the_run(context).counts["unread"] == {"file_replaced": 1}
        make_film(path, pixels=texture(96, 96), bits=12)
        confirm_more(context, films)
        retrain(context)
    finally:
        path.write_bytes(there)
    assert the_run(context).counts["unread"] == {"file_replaced": 1}
    assert sum(the_run(context).counts["films"].values()) == FILMS + 19


RULES = DecodeOptions(Preprocessing(size=SIDE), DEFAULT_LIMITS, timeout_seconds=60, memory_mb=4096)


def confirm_more(context: Context, films: Path) -> None:
    """Twenty films more, confirmed after the retrainings so far."""
    with session_scope(context.engine) as session:
        confirm_films(session, films, films=20, first=FILMS + 1, seed=2, days_ago=0)


@once
def test_a_share_that_is_away_is_a_failure_that_says_so(context):
    with session_scope(context.engine) as session:
        session.execute(update(Instance).values(path="/mnt/away" + Instance.path))
    outcome = retrained(context)
    assert outcome.state == "failed"
    assert "120 of 120 confirmed films cannot be read (file_unavailable 120)" in present(outcome.reason)
    with pytest.raises(labels.Unread, match="is their share mounted here"):
        judge_by_hand(context, champion_of(context))


@once
def test_a_film_that_comes_back_amid_a_run_waits_for_the_next(context, films, tmp_path, monkeypatch):
    away = (films / "1.dcm").rename(tmp_path / "away.dcm")
    retrain_until("judge", context, monkeypatch)
    away.rename(films / "1.dcm")
    with session_scope(context.engine) as session:
        expire(session)
    outcome = retrained(context)
    assert (outcome.run_id, outcome.state in ("passed", "undecided", "refused")) == (1, True), outcome.reason
    assert the_run(context).counts["unread"] == {"file_unavailable": 1}


def champion_of(context: Context) -> Checkpoint:
    with read_scope(context.engine) as session:
        champion = registry.champion(session)
    assert champion is not None
    return champion


@once
def test_without_a_film_to_judge_on_nothing_is_trained(context, monkeypatch):
    with session_scope(context.engine) as session:
        told = confirmed.confirmed_films(session, until=database_now(session), unconfirmed_is_absent=False)
        table = labels.manifest_of(told)
        tested = [film.instance_id for film, split in zip(told, table["split"], strict=True) if split == "test"]
        assert 0 < len(tested) < FILMS
        session.execute(delete(Review).where(Review.study_id.in_(tested)))  # a study's film has its number
    monkeypatch.setattr(retraining, "fit", _killed)
    outcome = retrained(context)
    assert outcome.state == "ended"
    assert "no confirmed film belongs to a test patient" in present(outcome.reason)


@once
def test_a_challenger_is_in_its_run_before_it_is_judged(context, monkeypatch):
    retrain_until("judge", context, monkeypatch)
    assert the_run(context).checkpoint_id is not None, "else nothing could tell where its scores came from"


@once
def test_a_challenger_of_another_input_size_is_judged_by_hand(context, tmp_path):
    header = Header(
        "mobilenet", preprocessing=Preprocessing(size=64), thresholds={f: {"flag_10": 0.5} for f in FINDINGS}
    )
    save_checkpoint(tmp_path / "other.safetensors", header, state=make_network("mobilenet").state_dict())
    with session_scope(context.engine) as session:
        other = context.register(session, tmp_path / "other.safetensors")
    found = judge_by_hand(context, other)
    assert found.champion_id == champion_of(context).id
    assert 0 < found.films < FILMS
    assert list((context.settings.state_folder / "retraining").iterdir()) == []


@once
def test_a_retraining_that_is_killed_while_it_trains_is_resumed_on_the_same_data(context):
    process = subprocess.Popen(
        [sys.executable, "-m", "worker.cli", "retrain"],
        env=os.environ | environment_of(with_settings(context, retrain={"epochs": 6}).settings),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    resumable = context.settings.state_folder / "retraining" / "run-1" / "training" / "resume.ckpt"
    try:
        wait_until(resumable.exists, seconds=240)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    killed = the_run(context)
    assert (killed.state, killed.stage) == ("running", "train")
    with session_scope(context.engine) as session:
        expire(session)
    outcome = retrained(context)
    run = the_run(context)
    assert (run.id, run.attempts, run.data_digest) == (killed.id, 2, killed.data_digest)
    assert len(run.metrics["epochs"]) == 6, "it keeps what it was asked, whatever the settings say by now"
    assert outcome.state == run.state


@pytest.mark.parametrize(("nice", "lowered"), [(19, [19, ("/proc/self/autogroup", "19")]), (0, [])])
def test_a_retraining_has_the_priority_that_the_settings_say(nice, lowered, monkeypatch):
    told: list[Any] = []
    monkeypatch.setattr("os.nice", told.append)
    monkeypatch.setattr("os.setsid", lambda: None)
    monkeypatch.setattr(Path, "write_text", lambda path, text: told.append((str(path), text)))
    retraining.in_background(nice)
    assert told == lowered


@once
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"retrain": {"min_new_films": 1000}},
            "120 films were confirmed since the champion was trained; 1000 are needed",
        ),
        ({"retrain": {"min_positives": 1000}}, "fewer than 1000 training films with Mass"),
    ],
)
def test_too_little_to_learn_is_an_outcome_with_its_reason(context, changed, words):
    outcome = retrained(with_settings(context, **changed))
    assert outcome.state == "ended"
    assert words in present(outcome.reason)
    assert the_run(context).reason == outcome.reason


@once
def test_without_a_confirmed_film_it_says_how_to_confirm_one(context):
    with session_scope(context.engine) as session:
        session.execute(text("DELETE FROM review"))
    assert "nightread review" in present(retrained(context).reason)


@once
def test_a_full_disk_ends_the_run_and_says_so(context, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(retraining, "fit", full)
    outcome = retrained(context)
    assert outcome.state == "failed"
    assert "disk of the state folder is full" in present(outcome.reason)
    assert not (context.settings.state_folder / "retraining" / "run-1" / "site").exists()


@once
def test_a_challenger_that_says_no_numbers_has_failed_and_is_not_judged(context, monkeypatch):
    def nonsense(checkpoint, prepared, **_: object):
        return np.full((len(prepared.manifest), len(FINDINGS)), np.nan, dtype=np.float32)

    monkeypatch.setattr(judging, "predict_logits", nonsense)
    outcome = retrained(context)
    assert outcome.state == "failed"
    assert "no numbers" in present(outcome.reason)


@once
def test_a_stop_lets_the_lock_go_at_once(context, monkeypatch):
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(retraining, "fit", stop)
    for _ in range(context.settings.max_attempts + 1):  # which are deaths, and this is none
        with pytest.raises(KeyboardInterrupt):
            retrain(context)
    monkeypatch.undo()
    assert retrained(context).run_id == 1
    assert the_run(context).attempts == 1


# ----------------------------------------------------------------------------------------------------- the promotion


def judged(session: Session, challenger: Checkpoint, result: Result, *, champion_id: int) -> None:
    check = Check(1, "gold", "skill", "Effusion", 0.5, 0.6, 0.1, -0.1, 0.3, 0.0, result, 40)
    verdict = GateVerdict(
        challenger_id=challenger.id, champion_id=champion_id, result=result, gold_digest="g", films=1, patients=1,
        rules={}, judged_by="test",
    )  # fmt: skip
    gate.record(session, verdict, [asdict(check)])


def pass_the_gate(
    monkeypatch: pytest.MonkeyPatch, *, meanwhile: Callable[[], object] = lambda: None, last: Result = "passed"
) -> None:
    """Let every check of a retraining's judging pass, but its last end as said, and something happen meanwhile."""
    judge = judging.judge

    def lenient(*args: Any, **named: Any) -> judging.Judged:
        verdict = judge(*args, **named)
        meanwhile()
        *others, final = (replace(check, result="passed") for check in verdict.checks)
        return replace(verdict, checks=(*others, replace(final, result=last)))

    monkeypatch.setattr(retraining, "judge", lenient)


@once
def test_a_promotion_that_somebody_forestalled_costs_no_verdict(context, challenger, monkeypatch):
    pass_the_gate(monkeypatch, meanwhile=lambda: promoted(context, challenger, override="meanwhile"))
    outcome = retrained(with_settings(context, retrain={"promotes": True}))
    assert outcome.state == the_run(context).state == "passed"
    assert "not promoted: checkpoint" in present(outcome.reason)
    assert "was judged beside another champion" in present(the_run(context).reason)
    with read_scope(context.engine) as session:
        assert present(gate.latest(session, present(the_run(context).checkpoint_id))).result == "passed"
    assert context.live().digest == challenger.digest


@once
def test_an_undecided_challenger_waits_for_a_person_whatever_the_site_promotes_by_itself(context, monkeypatch):
    before = context.live().checkpoint_id
    pass_the_gate(monkeypatch, last="undecided")
    outcome = retrained(with_settings(context, retrain={"promotes": True}))
    assert outcome.state == the_run(context).state == "undecided"
    assert outcome.reason == "undecided: macro_auroc"
    with read_scope(context.engine) as session:
        challenger = session.get_one(Checkpoint, the_run(context).checkpoint_id)
        assert present(gate.latest(session, challenger.id)).result == "undecided"
        assert challenger.state == "challenger"
    assert context.live().checkpoint_id == before


@once
def test_a_passed_challenger_goes_live_where_the_site_says_so(context, monkeypatch):
    pass_the_gate(monkeypatch)
    outcome = retrained(with_settings(context, retrain={"promotes": True}))
    assert present(outcome.reason).endswith("; promoted")
    assert context.live().checkpoint_id == the_run(context).checkpoint_id


@pytest.fixture
def challenger(context, untrained_checkpoint, tmp_path) -> Checkpoint:
    old = load_checkpoint(untrained_checkpoint)
    path = tmp_path / "challenger.safetensors"
    save_checkpoint(path, replace(header_of(old), code_commit="other"), state=build(old).state_dict())
    with session_scope(context.engine) as session:
        return context.register(session, path)


def promoted(context: Context, challenger: Checkpoint, **how: str) -> bool:
    with session_scope(context.engine) as session:
        promotion.promote(context, session, session.get_one(Checkpoint, challenger.id), reason="a test", **how)
    return context.live().digest == challenger.digest


def test_promotion_asks_for_a_verdict_a_passed_one_and_one_beside_todays_champion(context, challenger):
    champion_id = context.live().checkpoint_id
    with pytest.raises(promotion.NotPromoted, match="nobody has judged"):
        promoted(context, challenger)
    with session_scope(context.engine) as session:
        judged(session, challenger, "failed", champion_id=champion_id)
    with pytest.raises(promotion.NotPromoted, match="did not pass the gate: skill Effusion"):
        promoted(context, challenger)
    with session_scope(context.engine) as session:
        judged(session, challenger, "passed", champion_id=challenger.id)
    with pytest.raises(promotion.NotPromoted, match="beside another champion"):
        promoted(context, challenger)
    with session_scope(context.engine) as session:
        judged(session, challenger, "passed", champion_id=champion_id)
    assert promoted(context, challenger)


def test_what_is_undecided_goes_live_by_a_persons_word_which_is_kept(context, challenger):
    champion_id = context.live().checkpoint_id
    with session_scope(context.engine) as session:
        judged(session, challenger, "undecided", champion_id=champion_id)
    with pytest.raises(promotion.Undecided, match=r"skill Effusion \(about 40 positives needed\)"):
        promoted(context, challenger)
    assert context.live().checkpoint_id == champion_id
    assert promoted(context, challenger, accept_undecided="two radiologists read 30 films")
    with read_scope(context.engine) as session:
        audit = session.scalars(select(Audit).where(Audit.action == "verdict accepted")).one()
        logged = session.execute(
            text("SELECT DISTINCT verdict_result, accepted_by, accepted_reason FROM gate_log")
        ).one()
    assert audit.detail == {
        "digest": challenger.digest, "verdict": 1, "undecided": ["skill Effusion"],
        "reason": "two radiologists read 30 films",
    }  # fmt: skip
    assert tuple(logged) == ("undecided", audit.actor, "two radiologists read 30 films")


def test_a_persons_word_on_what_is_undecided_is_not_enough_for_what_failed(context, challenger):
    champion_id = context.live().checkpoint_id
    with session_scope(context.engine) as session:
        judged(session, challenger, "failed", champion_id=champion_id)
    with pytest.raises(promotion.NotPromoted, match="did not pass the gate"):
        promoted(context, challenger, accept_undecided="I like it")
    with pytest.raises(IntegrityError), session_scope(context.engine) as session:
        judged(session, challenger, cast(Result, "maybe"), champion_id=champion_id)
    assert context.live().checkpoint_id == champion_id


def test_an_override_is_somebodys_word_and_is_kept(context, challenger):
    assert promoted(context, challenger, override="the gold set is too old")
    with read_scope(context.engine) as session:
        row = session.get_one(Checkpoint, challenger.id)
        audits = session.scalars(select(Audit).where(Audit.action == "checkpoint champion")).all()
    assert "against the gate: the gold set is too old" in present(row.state_reason)
    assert any(audit.detail["reason"] == row.state_reason for audit in audits)


def test_a_former_champion_that_failed_beside_todays_needs_an_override(context, challenger):
    first = champion_of(context)
    assert promoted(context, challenger, override="a test")
    with session_scope(context.engine) as session:
        judged(session, first, "failed", champion_id=challenger.id)
    with pytest.raises(promotion.NotPromoted, match="did not pass the gate"):
        promoted(context, first)
    with session_scope(context.engine) as session:  # the way back is always open
        promotion.rollback(context, session, reason="an emergency")
    assert context.live().digest == first.digest


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_of_two_promotions_at_once_the_second_sees_the_first(context, challenger, beginner, tmp_path, monkeypatch):
    before = champion_of(context)
    second = tmp_path / "second.safetensors"
    loaded = load_checkpoint(beginner)
    save_checkpoint(second, replace(header_of(loaded), code_commit="second"), state=build(loaded).state_dict())
    with session_scope(context.engine) as session:
        other = context.register(session, second)
        for each in (challenger, other):
            judged(session, each, "passed", champion_id=before.id)
    begun, go_on = threading.Event(), threading.Event()

    def slowly(*args: Any, **named: Any) -> None:
        begun.set()
        assert go_on.wait(60)
        prove(*args, **named)

    monkeypatch.setattr(promotion, "prove", slowly)
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(promoted, context, challenger)
        assert begun.wait(60)  # it has looked at its verdict, and holds the turn
        two = pool.submit(promoted, context, other)
        wait_until(lambda: waits_for_a_lock(context))
        go_on.set()
        assert one.result(60)
        with pytest.raises(promotion.NotPromoted, match="beside another champion"):
            two.result(60)


def header_of(checkpoint: LoadedCheckpoint) -> Header:
    return Header(checkpoint.network, preprocessing=checkpoint.preprocessing, thresholds=checkpoint.thresholds)


def waits_for_a_lock(context: Context) -> bool:
    with read_scope(context.engine) as session:
        return bool(session.scalar(text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")))


# --------------------------------------------------------------------------------------------------------- the queue


def test_beat_sends_retraining_to_its_own_queue_when_crontab_says_so(settings):
    entries = schedule(settings.changed(retrain={"schedule": "30 21 * * 5"}, drift={"schedule": ""}))
    assert set(entries) == {"sweep", "retrain"}
    assert entries["retrain"]["options"]["queue"] == TRAINING
    assert str(entries["retrain"]["schedule"]) == "<crontab: 30 21 * * 5 (m/h/dM/MY/d)>"


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_message_makes_the_training_worker_retrain(context, redis_url, tmp_path):
    queued = with_settings(context, broker_url=redis_url)
    log = tmp_path / "worker.log"
    with running(queued, "worker", log, "--queue", "training"):
        ask_for_retraining(make_app(queued.settings), "schedule")
        wait_until(lambda: bool(_runs(context)) and the_run(context).state != "running", seconds=270, log=log)
    assert the_run(context).cause == "schedule"
    assert the_run(context).state in ("passed", "undecided", "refused"), log.read_text()


def _runs(context: Context) -> list[TrainingRun]:
    with read_scope(context.engine) as session:
        return list(training_runs.everything(session))
