"""Versions of the policy: written, made live, and what becomes of the studies that an older one placed."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import typer
from sqlalchemy import Engine, func, select, text, update
from sqlalchemy.orm import Session
from typer.testing import CliRunner, Result

from db import policies, registry, worklist
from db.models import Audit, Checkpoint, FilmScore, PolicyFindingRow, PolicyRow, Study, StudyPriority
from db.session import read_scope, session_scope
from tests.integration.test_sql_questions import (
    CHECKPOINT_THRESHOLD,
    add_instance,
    add_policy_and_checkpoint,
    add_study,
)
from tests.support.reading_keys import standing
from training.findings import FINDINGS
from worker.cli import policy as policy_commands
from worker.context import Context
from worker.explain import explain_named
from worker.ranking import activation, policy
from worker.ranking.policy import Changes
from worker.ranking.priority import DEFAULT_POLICY, NOT_SCORED, PARTLY_SCORED, PolicyError
from worker.settings import Settings

NOW = datetime.now(UTC)
EDEMA_FIRST = Changes(weights={"Edema": 2.0}, categories={"Edema": "A", "Pneumothorax": "B"}, thresholds={"Edema": 0.2})
CUTS = dict.fromkeys(FINDINGS, CHECKPOINT_THRESHOLD)


def fill(session: Session) -> None:
    add_policy_and_checkpoint(session)
    if session.get_bind().dialect.name == "postgresql":  # those two rows named their ids themselves
        for table in ("policy", "checkpoint"):
            session.execute(text(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), 1)"))
    add_study(session, "PTX", received_at=NOW, probabilities={"Pneumothorax": 0.9})
    add_study(session, "EDEMA", received_at=NOW, probabilities={"Edema": 0.3, "Effusion": 0.1})
    add_study(session, "NONE", received_at=NOW, state="quarantined", reason="truncated")
    partly = add_study(session, "PARTLY", received_at=NOW, probabilities={"Hernia": 0.1})
    session.execute(update(StudyPriority).where(StudyPriority.study_id == partly).values(flag=PARTLY_SCORED))
    read = add_study(session, "READ", received_at=NOW, probabilities={"Edema": 0.6}, read_after_minutes=5)
    second = add_instance(session, session.get_one(Study, read), "2", view="AP", state="scored")
    scores = dict.fromkeys((finding.lower() for finding in FINDINGS), 0.0) | {"edema": 0.8}
    session.add(FilmScore(instance_id=second.id, checkpoint_id=1, scored_at=NOW, **scores))


@pytest.fixture
def filled(engine: Engine) -> Engine:
    with session_scope(engine) as session:
        fill(session)
    return engine


def write(engine: Engine, changes: Changes) -> int:
    with session_scope(engine) as session:
        rules = policy.edited(policy.from_rows(session, policies.by_version(session, 1)), changes)
        return policy.store(session, rules, capacity={}, by="test", note="a test").version


def places(engine: Engine) -> dict[str, StudyPriority]:
    with read_scope(engine) as session:
        rows = session.execute(select(Study.accession_number, StudyPriority).join(StudyPriority))
        return {name or "": row for name, row in rows}


def order(engine: Engine) -> list[str]:
    with read_scope(engine) as session:
        return [row["accession_number"] for row in worklist.worklist(session)]


def test_a_version_ranks_nothing_until_it_is_activated(filled: Engine):
    before = order(filled)
    write(filled, EDEMA_FIRST)
    assert order(filled) == before
    assert {row.policy_id for row in places(filled).values()} == {1}


def test_activating_places_unread_and_read_studies_by_stored_probabilities(filled: Engine):
    with read_scope(filled) as session:
        scored_before = session.scalar(select(func.count()).select_from(FilmScore))
    assert activation.activate(filled, write(filled, EDEMA_FIRST), by="ada") == (4, 1)
    rules = policy.edited(DEFAULT_POLICY, EDEMA_FIRST)
    found = places(filled)
    assert order(filled)[0] == "EDEMA"
    assert (found["EDEMA"].category, found["EDEMA"].urgency) == ("A", pytest.approx(2 * 0.3 + 0.4 * 0.1))
    assert (found["EDEMA"].top_finding, found["EDEMA"].top_probability) == ("Edema", pytest.approx(0.3))
    assert found["PTX"].category == "B"
    assert found["READ"].urgency == pytest.approx(2 * 0.8)  # the higher of its two films
    assert found["READ"].read_at is not None
    assert (found["NONE"].flag, found["NONE"].urgency) == (NOT_SCORED, rules.unscored_urgency)
    assert (found["PARTLY"].flag, found["PARTLY"].category) == (PARTLY_SCORED, "B")
    assert {row.policy_id for row in found.values()} == {2}
    with read_scope(filled) as session:
        assert session.scalar(select(func.count()).select_from(FilmScore)) == scored_before
        assert session.scalar(select(PolicyRow.version).where(PolicyRow.active)) == 2


def test_activating_the_first_version_again_restores_every_place(filled: Engine):
    before = {name: (row.category, row.urgency, row.top_finding) for name, row in places(filled).items()}
    before["PARTLY"] = ("B", 0.4, "Hernia")  # what being partly scored makes of it
    before["READ"] = ("B", 0.25 * 0.8, "Edema")  # its second film
    activation.activate(filled, write(filled, EDEMA_FIRST), by="ada")
    activation.activate(filled, 1, by="ada")
    after = {name: (row.category, pytest.approx(row.urgency), row.top_finding) for name, row in places(filled).items()}
    assert after == before


def test_many_studies_at_once_get_the_places_that_one_gets(monkeypatch: pytest.MonkeyPatch, filled: Engine):
    probabilities = [{finding: ((7 * i + 3 * j) % 10) / 10 for j, finding in enumerate(FINDINGS)} for i in range(12)]
    with session_scope(filled) as session:
        for i, row in enumerate(probabilities):
            add_study(session, f"M{i}", received_at=NOW, probabilities=row)
    monkeypatch.setattr(activation, "BATCH", 5)
    batches: list[int] = []
    activation.activate(filled, write(filled, EDEMA_FIRST), by="ada", on_ranked=batches.append)
    assert batches == [5, 5, 5, 1, 1]
    rules, found = policy.edited(DEFAULT_POLICY, EDEMA_FIRST), places(filled)
    for i, row in enumerate(probabilities):
        expected = standing(row, rules, CUTS | {"Pneumothorax": 0.3})  # version 1 has this one of its own
        place = found[f"M{i}"]
        assert (place.category, place.urgency) == (expected.category, pytest.approx(expected.urgency, abs=1e-6))


def test_read_studies_that_an_interruption_left_are_placed_when_it_is_activated_again(
    monkeypatch: pytest.MonkeyPatch, filled: Engine
):
    with session_scope(filled) as session:
        for i in range(3):
            add_study(session, f"R{i}", received_at=NOW, probabilities={"Edema": 0.5}, read_after_minutes=1)
    version = write(filled, EDEMA_FIRST)
    monkeypatch.setattr(activation, "BATCH", 1)
    seen: list[int] = []

    def interrupt(studies: int) -> None:
        seen.append(studies)
        if len(seen) == 6:  # the four unread ones and two read ones
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        activation.activate(filled, version, by="ada", on_ranked=interrupt)
    assert sum(row.policy_id == 2 for row in places(filled).values()) == 6
    assert activation.activate(filled, version, by="ada") == (0, 2)
    assert {row.policy_id for row in places(filled).values()} == {2}


def test_a_failure_among_the_unread_leaves_list_and_policy_as_they_were(filled: Engine):
    version, before = write(filled, EDEMA_FIRST), order(filled)

    def fail(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        activation.activate(filled, version, by="ada", on_ranked=fail)
    assert order(filled) == before
    with read_scope(filled) as session:
        assert session.scalar(select(PolicyRow.version).where(PolicyRow.active)) == 1


def test_a_version_that_sql_wrote_badly_is_refused_whole(filled: Engine):
    with session_scope(filled) as session:
        row = PolicyRow(version=2, max_wait_minutes=5, category_a_share=0.1, created_at=NOW, created_by="sql")
        session.add(row)
        session.flush()
        session.add(PolicyFindingRow(policy_id=row.id, finding="Mass", category="A", weight=1.0))
    with pytest.raises(PolicyError, match="Pneumothorax is missing"):
        activation.activate(filled, 2, by="ada")
    assert {row.policy_id for row in places(filled).values()} == {1}


@pytest.mark.parametrize(
    "thresholds", [{}, {finding: {"sensitivity_90": 0.4} for finding in FINDINGS}], ids=["none", "not flag_10"]
)
def test_a_checkpoint_that_ranks_no_study_is_not_asked_for_thresholds(filled: Engine, thresholds: dict[str, object]):
    with session_scope(filled) as session:
        header = {"thresholds": thresholds}  # as `models add` registers a file that was fitted without validation films
        registry.register(
            session, digest="cd" * 32, path="/x", network="mobilenet", header=header, reference={}, by="test"
        )
    assert activation.activate(filled, write(filled, EDEMA_FIRST), by="ada") == (4, 1)


def test_a_checkpoint_that_ranks_studies_must_have_a_threshold_for_all_but_category_d(filled: Engine):
    def without(finding: str) -> dict[str, object]:
        cuts = {name: {"flag_10": CHECKPOINT_THRESHOLD} for name in FINDINGS}
        return {"thresholds": cuts | {finding: {"sensitivity_90": 0.4}}}

    with session_scope(filled) as session:
        session.execute(update(Checkpoint).values(header=without("Mass")))
    with pytest.raises(PolicyError, match="Mass in category C has no threshold"):
        activation.activate(filled, version := write(filled, EDEMA_FIRST), by="ada")
    with session_scope(filled) as session:
        session.execute(update(Checkpoint).values(header=without("Hernia")))
    assert activation.activate(filled, version, by="ada") == (4, 1)
    found = explain_named(Context(Settings(database_url=filled.url.render_as_string(hide_password=False))), "EDEMA")
    assert ("category", "A: Edema at or above threshold") in found.facts


def test_what_a_worker_placed_by_the_old_policy_is_caught_up(filled: Engine):
    activation.activate(filled, write(filled, EDEMA_FIRST), by="ada")
    with session_scope(filled) as session:
        add_study(session, "LATE", received_at=NOW, probabilities={"Edema": 0.9})  # policy 1, by a worker that held it
    assert activation.catch_up(filled) == 1
    assert (places(filled)["LATE"].category, places(filled)["LATE"].policy_id) == ("A", 2)
    with session_scope(filled) as session:
        session.execute(update(PolicyRow).where(PolicyRow.active).values(activated_at=NOW - timedelta(hours=2)))
        session.execute(text("UPDATE study_priority SET policy_id = 1"))
    assert activation.catch_up(filled) == 0


def test_who_wrote_and_who_activated_is_kept(filled: Engine):
    activation.activate(filled, write(filled, EDEMA_FIRST), by="ada")
    with read_scope(filled) as session:
        audit = [(row.actor, row.action, row.detail["version"]) for row in session.scalars(select(Audit))]
        row = policies.by_version(session, 2)
    assert audit == [("test", "policy created", 2), ("ada", "policy activated", 2)]
    assert (row.created_by, row.activated_by, row.note) == ("test", "ada", "a test")


def test_the_sites_own_films_give_the_threshold_that_flags_its_share(filled: Engine):
    with session_scope(filled) as session:
        for i in range(20):
            add_study(session, f"S{i}", received_at=NOW, probabilities={"Pneumothorax": i / 20})
        found = policy.threshold_from_site(
            session, finding="Pneumothorax", share=0.1, checkpoint_id=1, weeks=1, at_least=20
        )
        assert found == (0.9, 25)  # three of 25: .95, .9 and the .9 of PTX
        with pytest.raises(PolicyError, match="scored 25 films in 1 weeks; 1000 are needed"):
            policy.threshold_from_site(
                session, finding="Pneumothorax", share=0.1, checkpoint_id=1, weeks=1, at_least=1000
            )


# -------------------------------------------------------------------------------------------------- the commands


@pytest.fixture
def command(filled: Engine, untrained_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    monkeypatch.setenv("NIGHTREAD_DATABASE_URL", filled.url.render_as_string(hide_password=False))
    monkeypatch.setenv("NIGHTREAD_CHECKPOINT", str(untrained_checkpoint))
    Context(Settings()).seed()
    return policy_commands.app


def invoke(command: typer.Typer, *words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(command, words)
    assert result.exit_code == code, result.output
    return result


def test_an_administrator_edits_looks_and_activates(command: typer.Typer, filled: Engine):
    words = ("--weight", "Edema=2", "--category", "Edema=a", "--threshold", "Edema=.2", "--max-wait-minutes", "600")
    output = invoke(command, "edit", *words, "--note", "edema is what we miss").output
    assert "policy activate 2" in output
    assert '"weight": 2.0' in invoke(command, "show", "--version", "2", "--json").output
    assert "edema is what we miss" in invoke(command, "show", "--all", "--json").output
    assert "4 unread and 1 read" in " ".join(invoke(command, "activate", "2").output.split())
    assert {row.policy_id for row in places(filled).values()} == {2}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--weight", "Oedema=1"), "no finding is called Oedema"),
        (("--weight", "Edema"), "--weight takes FINDING=VALUE"),
        (("--weight", "Edema=heavy"), "'heavy' is not a number"),
        (("--weight", "Edema=-1"), "weight must be finite and not negative"),
        (("--category", "Edema=E"), "category must be one of A, B, C, D"),
        (("--threshold", "Edema=1.5"), "threshold must lie between 0 and 1"),
        (("--max-wait-minutes", "0"), "max_wait_minutes must be above 0"),
        ((), "nothing to change"),
    ],
)
def test_an_edit_that_makes_no_sense_is_refused_with_its_reason(
    command: typer.Typer, filled: Engine, words: tuple[str, ...], complaint: str
):
    output = invoke(command, "edit", *words, "--note", "why", code=2)
    assert complaint in " ".join(output.stderr.split())
    with read_scope(filled) as session:
        assert [row.version for row in policies.versions(session)] == [1]


def test_activating_a_version_that_is_not_there_is_wrong_usage(command: typer.Typer):
    assert "no policy has this version" in invoke(command, "activate", "9", code=2).stderr
