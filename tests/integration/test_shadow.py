"""A second checkpoint looks at the night beside the champion, on both databases, and costs it nothing."""

import json
import time
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from sqlalchemy import select, text
from typer.testing import CliRunner

from db import registry
from db.models import FINDING_COLUMNS, Checkpoint, FilmScore, ShadowPriority, StudyPriority
from db.session import read_scope, session_scope
from tests.support.crew import enqueue, environment_of, running, totals, wait_until
from tests.support.dicom_files import make_film, texture
from tests.support.untrained import save_untrained
from tests.support.values import present
from training.checkpoint import CheckpointError, UnsoundCheckpoint
from worker.checkpoints import promotion
from worker.cli import app as cli
from worker.context import Context, file_digest
from worker.intake.receive import receive
from worker.monitoring.prometheus import WorkMetrics
from worker.queue import tasks
from worker.queue.tasks import Service
from worker.scoring.inference import Classifier
from worker.scoring.pipeline import score_waiting
from worker.scoring.scorer import open_scorer
from worker.scoring.shadow import NoShadow, Seen, Shadow, enter, has_changed, leave, open_shadow


def put_into_shadow(context: Context, path: Path) -> Checkpoint:
    champion = context.live()
    with session_scope(context.engine) as session:
        row = context.register(session, path)
        enter(context, session, row, champion=champion, reason="a test")
        return row


def end_shadow(context: Context) -> None:
    with session_scope(context.engine) as session:
        leave(session, reason="a test")


def films(folder: Path, count: int = 3) -> Path:
    folder.mkdir(exist_ok=True)
    for i in range(count):
        make_film(folder / f"{i}.dcm", pixels=texture(seed=i), bits=12)
    return folder


def score(context: Context, folder: Path, metrics: WorkMetrics | None = None):
    receive(context, [folder])
    with open_scorer(context, metrics=metrics) as scorer:
        return score_waiting(scorer, kind="score")


def scores(context: Context, checkpoint_id: int) -> list[tuple]:
    columns = [getattr(FilmScore, name) for name in FINDING_COLUMNS]
    with read_scope(context.engine) as session:
        rows = select(FilmScore.instance_id, *columns).where(FilmScore.checkpoint_id == checkpoint_id)
        return [tuple(row) for row in session.execute(rows.order_by(FilmScore.instance_id))]


def shadow_places(context: Context) -> dict[int, ShadowPriority]:
    with read_scope(context.engine) as session:
        return {row.study_id: row for row in session.scalars(select(ShadowPriority))}


def failures(metrics: WorkMetrics, reason: str) -> float:
    return metrics.registry.get_sample_value("nightread_shadow_failures_total", {"reason": reason}) or 0


def test_the_shadow_sees_what_the_champion_sees_and_only_the_champion_ranks(context, make_context, other, tmp_path):
    folder = films(tmp_path / "films", 5)
    pair = make_film(folder / "pair-1.dcm", pixels=texture(seed=8), bits=12)
    make_film(folder / "pair-2.dcm", StudyInstanceUID=pair.StudyInstanceUID, PixelData=b"\0\0")
    make_film(folder / "broken.dcm", PixelData=b"\0\0")
    alone = make_context(checkpoint=other)
    score(alone, folder)
    row, champion = put_into_shadow(context, other), context.live()
    score(context, folder)
    with read_scope(context.engine) as session:
        places = {place.study_id: place for place in session.scalars(select(StudyPriority))}
        ranks = session.execute(text("SELECT count(*), max(shadow_rank) FROM shadow_ranks")).one()
    seen = shadow_places(context)
    assert {place.checkpoint_id for place in places.values()} == {champion.checkpoint_id, None}
    assert len(scores(context, champion.checkpoint_id)) == len(seen) == 6
    approximately = [pytest.approx(values, abs=1e-6) for values in scores(alone, alone.live().checkpoint_id)]
    assert scores(context, row.id) == approximately
    assert scores(context, row.id) != scores(context, champion.checkpoint_id)
    assert sorted(str(place.flag) for place in seen.values()) == ["None"] * 5 + ["partly_scored"]
    assert all(places[i].flag == place.flag for i, place in seen.items())
    assert tuple(ranks) == (6, 6)


def test_a_shadow_file_that_is_damaged_costs_no_study(context, other, tmp_path):
    row, metrics = put_into_shadow(context, other), WorkMetrics()
    kept = context.file_of(row)
    kept.write_bytes(kept.read_bytes()[:999])
    tally = score(context, films(tmp_path / "films"), metrics)
    assert (tally.scored, tally.quarantined) == (3, 0)
    assert shadow_places(context) == {}
    assert failures(metrics, "shadow_not_loaded") == 1


def test_a_film_that_fails_for_want_of_memory_is_tried_again_without_the_shadow(embedded, other, tmp_path):
    put_into_shadow(embedded, other)
    receive(embedded, [films(tmp_path / "films")])
    metrics = WorkMetrics()
    with open_scorer(embedded, metrics=metrics) as scorer:
        whole = scorer.classifier.predict

        def predict(inputs):
            if scorer.shadow.classifier is not None:
                raise RuntimeError("not enough memory")
            return whole(inputs)

        scorer.classifier.predict = predict  # type: ignore[method-assign]
        tally = score_waiting(scorer, kind="score")
    assert (tally.scored, tally.quarantined) == (3, 0)
    assert failures(metrics, "shadow_gave_way") == 1
    with read_scope(embedded.engine) as session:
        assert session.execute(text("SELECT max(attempts) FROM study")).scalar() == 1


class Fake:
    """A network that answers, or raises, what it was given."""

    batch_size, device, threads = 4, torch.device("cpu"), 1

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return np.full((len(inputs), 11), self.answer, dtype=np.float32)


def fake(answer: object) -> Classifier:
    return cast(Classifier, Fake(answer))


def looking(answer: object, *, patience_seconds: float = 60) -> tuple[Shadow, WorkMetrics]:
    metrics = WorkMetrics()
    at_work = Shadow("d" * 64, metrics=metrics, patience_seconds=patience_seconds)
    at_work.classifier = fake(answer)
    return at_work, metrics


INPUTS = np.zeros((2, 64, 64), dtype=np.uint8)


@pytest.mark.parametrize(
    "answer", [UnsoundCheckpoint("NaN"), RuntimeError(), MemoryError(), torch.cuda.OutOfMemoryError()]
)
def test_what_a_shadow_raises_or_gets_wrong_is_counted_and_goes_no_further(answer):
    at_work, metrics = looking(answer)
    assert at_work.look(INPUTS) is None
    assert failures(metrics, "shadow_failed") == 1


def test_a_shadow_that_takes_a_quarter_of_a_lease_is_left_out_from_then_on():
    at_work, metrics = looking(0.5, patience_seconds=-1)
    assert at_work.look(INPUTS) is not None
    assert at_work.look(INPUTS) is None
    assert failures(metrics, "shadow_too_slow") == 1


def test_what_the_shadow_cannot_record_is_left_out(context, other, tmp_path):
    receive(context, [films(tmp_path / "films", 1)])
    put_into_shadow(context, other)
    metrics = WorkMetrics()
    at_work = open_shadow(context, context.live(), fake(0.5), metrics=metrics)
    at_work.record(context.engine, [Seen(1, {99: (0.5,) * 11}, complete=True, blind=False)], run_id=None)
    assert shadow_places(context) == {}
    assert failures(metrics, "shadow_not_recorded") == 1
    at_work.record(context.engine, [Seen(1, {1: (0.5,) * 11}, complete=True, blind=False)], run_id=None)
    assert list(shadow_places(context)) == [1]


# ---------------------------------------------------------------------------------------------------- into it, and out


def test_only_a_challenger_goes_into_shadow_and_one_at_a_time(context, other, tmp_path):
    first = put_into_shadow(context, other)
    second = put_into_shadow(context, save_untrained(tmp_path / "third.safetensors", seed=2))
    with read_scope(context.engine) as session:
        assert present(registry.shadow(session)).id == second.id
        assert session.get_one(Checkpoint, first.id).state == "challenger"
        champion = present(registry.champion(session))
    live = context.live()
    with pytest.raises(NoShadow, match="is champion"), session_scope(context.engine) as session:
        enter(context, session, champion, champion=live, reason="a test")
    end_shadow(context)
    with pytest.raises(NoShadow, match="no checkpoint"):
        end_shadow(context)


def test_a_checkpoint_that_takes_other_inputs_is_refused_with_both_sizes(context, tmp_path):
    with pytest.raises(NoShadow, match=r"squash_inner, 96 pixels.*squash_inner, 64 pixels"):
        put_into_shadow(context, save_untrained(tmp_path / "large.safetensors", size=96))


def test_a_damaged_file_does_not_go_into_shadow(context, other):
    with session_scope(context.engine) as session:
        row = context.register(session, other)
    kept = context.file_of(row)
    kept.write_bytes(kept.read_bytes() + b"x")
    with pytest.raises(CheckpointError):
        put_into_shadow(context, other)
    with read_scope(context.engine) as session:
        assert registry.shadow(session) is None


def test_a_shadow_beside_a_champion_with_other_inputs_is_left_out(context, other, tmp_path):
    put_into_shadow(context, other)
    with session_scope(context.engine) as session:
        large = context.register(session, save_untrained(tmp_path / "large.safetensors", size=96))
        promotion.promote(context, session, large, reason="a test", override="a test")
    metrics = WorkMetrics()
    assert open_shadow(context, context.live(), fake(0.5), metrics=metrics).classifier is None
    assert failures(metrics, "shadow_not_loaded") == 1


def test_a_shadow_that_could_not_be_loaded_is_tried_again_after_a_minute(embedded, other, monkeypatch):
    row = put_into_shadow(embedded, other)
    kept, live = embedded.file_of(row), embedded.live()
    bytes_of_it = kept.read_bytes()
    kept.unlink()
    at_work = open_shadow(embedded, live, fake(0.5), metrics=WorkMetrics())
    assert not at_work.is_due
    kept.write_bytes(bytes_of_it)
    soon = time.monotonic() + 61
    monkeypatch.setattr(time, "monotonic", lambda: soon)
    assert at_work.is_due
    assert not has_changed(at_work, embedded, live), "it is still the same one: no worker empties its hands for it"
    assert not open_shadow(embedded, live, Fake(0.5), metrics=WorkMetrics()).is_due


# ------------------------------------------------------------------------------------------------------------- workers


def test_a_worker_takes_up_a_new_shadow_and_lets_go_of_an_ended_one_without_reopening(context, other, tmp_path):
    service = Service(context, metrics=WorkMetrics())
    studies: list[int] = []
    decoders = service.scorer().decoders
    try:
        for i, change in enumerate(
            (lambda: None, lambda: put_into_shadow(context, other), lambda: end_shadow(context))
        ):
            change()
            folder = tmp_path / str(i)
            folder.mkdir()
            make_film(folder / "a.dcm", pixels=texture(seed=i), bits=12)
            studies += receive(context, [folder]).studies
            service.score(studies[-1])
        assert service.scorer().decoders is decoders
    finally:
        service.close()
    assert list(shadow_places(context)) == [studies[1]]


def test_a_shadow_that_ends_in_the_middle_of_a_night_leaves_whole_studies_only(context, other, tmp_path, monkeypatch):
    folder = films(tmp_path / "films", 10)
    for i in range(3):
        pair = make_film(folder / f"pair-{i}.dcm", pixels=texture(seed=20 + i), bits=12)
        make_film(
            folder / f"pair-{i}b.dcm", StudyInstanceUID=pair.StudyInstanceUID, pixels=texture(seed=30 + i), bits=12
        )
    row = put_into_shadow(context, other)
    monkeypatch.setattr(tasks, "LOOK_FOR_CHAMPION_SECONDS", 0.0)
    service, settled = Service(context, metrics=WorkMetrics()), WorkMetrics.settled
    first = receive(context, [folder]).studies

    def settled_and_ended(self, *args, **kwargs):
        settled(self, *args, **kwargs)
        with read_scope(context.engine) as session:
            ended = registry.shadow(session) is None
        if not ended:
            end_shadow(context)

    monkeypatch.setattr(WorkMetrics, "settled", settled_and_ended)
    try:
        service.score(min(first))
    finally:
        service.close()
    assert (totals(context).scored, totals(context).balance) == (13, True)
    seen = shadow_places(context)
    assert 0 < len(seen) < 13
    with read_scope(context.engine) as session:
        by_study = "SELECT count(*) FROM instance WHERE study_id IN (SELECT study_id FROM shadow_priority)"
        assert len(scores(context, row.id)) == session.execute(text(by_study)).scalar()


def test_two_workers_write_a_shadow_row_for_every_study(make_context, postgres_url, redis_url, other, tmp_path):
    context = make_context(database_url=postgres_url, broker_url=redis_url)
    row = put_into_shadow(context, other)
    log = tmp_path / "worker.log"
    with running(context, "worker", log), running(context, "worker", log):
        wait_until(lambda: log.read_text().count("shadow_loaded") == 2, log=log)
        enqueue(context, films(tmp_path / "films", 24))
        wait_until(lambda: totals(context).scored == 24, log=log)
        wait_until(lambda: len(shadow_places(context)) == 24, log=log)
    assert len(scores(context, row.id)) == len(scores(context, context.live().checkpoint_id)) == 24


# ------------------------------------------------------------------------------------------------------------- commands


def test_the_commands_put_into_shadow_compare_and_end_it(embedded, other, tmp_path, monkeypatch):
    for name, value in environment_of(embedded.settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", "200")

    def nightread(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(cli.app, list(arguments))
        assert result.exit_code == code, result.output
        return result.output

    nightread("models", "add", str(other))
    digest = file_digest(other)[:12]
    nightread("models", "compare", code=2)
    assert "is in shadow" in nightread("models", "shadow", digest, "--reason", "a test")
    nightread("models", "shadow", "00000000", "--reason", "a test", code=2)
    nightread("score", str(films(tmp_path / "films", 4)))
    (night,) = json.loads(nightread("models", "compare", "--json"))
    assert (night["studies"], night["seen_by_both"]) == (4, 4)
    assert [row["finding"] for row in night["differences"]]
    shown = nightread("models", "compare", "--night", night["name"])
    assert night["name"] in shown
    assert "Pneumothorax" in shown
    assert json.loads(nightread("models", "compare", "--night", "2020-01-01", "--json")) == []
    assert "is a challenger again" in nightread("models", "unshadow", "--reason", "a test")
    assert len(json.loads(nightread("models", "compare", digest, "--json"))) == 1
