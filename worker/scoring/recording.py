"""The outcomes of finished studies, recorded in one transaction with their films, priorities and states."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import structlog

from db import arrivals, ledger, results, runs
from db.ledger import ClaimedFilm, Outcome
from db.models import SettledState
from db.results import FilmResult, PriorityResult
from db.session import session_scope
from worker.context import Live
from worker.patience import patiently
from worker.ranking import priority
from worker.reasons import sentence
from worker.scoring.in_flight import StudyInFlight
from worker.scoring.scorer import Scorer
from worker.scoring.shadow import Seen

log = structlog.get_logger()


@dataclass
class Tally:
    """Counts of one pass."""

    studies: int = 0
    scored: int = 0
    skipped: int = 0
    quarantined: int = 0
    put_off: int = 0  # studies whose files could not be reached; they wait
    films: int = 0
    copies_tried: int = 0  # files rejected at intake, which took the place of films that failed

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(own + others for own, others in zip(astuple(self), astuple(other), strict=True)))

    def settle(self, state: SettledState, *, films: int) -> None:
        """Count a study and its scored films."""
        self.studies += 1
        self.films += films
        match state:
            case "scored":
                self.scored += 1
            case "skipped":
                self.skipped += 1
            case "quarantined":
                self.quarantined += 1


@patiently
def record(scorer: Scorer, finished: Sequence[StudyInFlight], *, run_id: int, tally: Tally) -> None:
    """Films, priorities and outcomes of finished studies, in one transaction; then count and log them."""
    away = [study for study in finished if _must_wait(study, hours=scorer.context.settings.unavailable_hours)]
    done = [study for study in finished if study not in away]
    done_by_id = {study.claimed.study_id: study for study in done}
    films = {i: film_results(study) for i, study in done_by_id.items()}
    outcomes = {i: study_outcome(study, films[i]) for i, study in done_by_id.items()}
    blind = {i: scorer.context.blinding.draws(study.claimed.study_instance_uid) for i, study in done_by_id.items()}
    with scorer.metrics.stage("record"), session_scope(scorer.engine) as session:
        for study in away:
            failure = next(failure for failure in study.failures.values() if failure.transient)
            ledger.put_off(session, study.claimed, worker=scorer.worker, reason=failure.reason, detail=failure.sentence)
        settled = ledger.settle(session, list(outcomes.values()), worker=scorer.worker, run_id=run_id)
        settled_ids = [outcome.study.study_id for outcome in settled]
        results.record_films(
            session,
            [film for study_id in settled_ids for film in films[study_id]],
            checkpoint_id=scorer.live.checkpoint_id,
            run_id=run_id,
        )
        listed = [i for i in settled_ids if outcomes[i].state != "skipped"]
        places = [study_priority(scorer.live, outcomes[i], films[i], blind=blind[i]) for i in listed]
        results.record_priorities(session, places, policy_id=scorer.live.policy_id)
        without_films = [i for i in settled_ids if outcomes[i].state == "skipped"]
        arrivals.unplace(session, without_films, placement=scorer.live.first_placement)
        broken = [film.instance_id for i in settled_ids for film in films[i] if film.state == "quarantined"]
        copies_tried = arrivals.take_up_copies(session, broken)
        if settled:
            runs.touch(session, run_id)
    tally.put_off += len(away)
    tally.copies_tried += copies_tried
    for outcome in settled:
        _count(scorer, outcome, films[outcome.study.study_id], tally)
    # Last, and in a transaction of its own: nothing that the shadow does can undo what has just been recorded.
    shadowed = [seen_by_shadow(done_by_id[i], outcomes[i], films[i], blind=blind[i]) for i in settled_ids]
    scorer.shadow.record(scorer.engine, [study for study in shadowed if study is not None], run_id=run_id)


def _must_wait(study: StudyInFlight, *, hours: float) -> bool:
    unreachable = any(failure.transient for failure in study.failures.values())
    return unreachable and study.claimed.unavailable_hours < hours


def film_results(study: StudyInFlight) -> list[FilmResult]:
    """The outcome of each film of a finished study. Of films with the same pixels only the first counts."""
    digests: set[str] = set()
    return [_film_result(study, film, digests) for film in study.claimed.films]


def _film_result(study: StudyInFlight, film: ClaimedFilm, digests: set[str]) -> FilmResult:
    failure = study.failures.get(film.instance_id)
    if failure is not None:
        return FilmResult(film.instance_id, "quarantined", reason=failure.reason, evidence=failure.sentence)
    digest, file_digest = study.inputs[film.instance_id].pixel_digest, study.inputs[film.instance_id].file_digest
    if digest in digests:
        why = sentence("duplicate_pixels")
        return FilmResult(film.instance_id, "skipped", "duplicate_pixels", why, digest, file_digest)
    digests.add(digest)
    probabilities = study.probabilities[film.instance_id]
    return FilmResult(film.instance_id, "scored", None, None, digest, file_digest, probabilities)


def study_outcome(study: StudyInFlight, films: Sequence[FilmResult]) -> Outcome:
    """Scored if any film was; quarantined, with the first film's reason, if films failed and none was scored."""
    failed = [film for film in films if film.state == "quarantined"]
    if any(film.state == "scored" for film in films):
        partly = f"{len(failed)} of {len(films)} films could not be read" if failed else None
        return Outcome(study.claimed, "scored", failed[0].reason if failed else None, partly)
    if failed:
        return Outcome(study.claimed, "quarantined", failed[0].reason, failed[0].evidence)
    if study.claimed.broken_films:
        return Outcome(study.claimed, "quarantined", "films_quarantined", sentence("films_quarantined"))
    return Outcome(study.claimed, "skipped", "no_film", sentence("no_film"))


def study_priority(live: Live, outcome: Outcome, films: Sequence[FilmResult], *, blind: bool) -> PriorityResult:
    """Where the policy puts a study: by the highest probability of each finding over its films."""
    scored = [film.probabilities for film in films if film.state == "scored"]
    return live.place(
        outcome.study.study_id,
        priority.study_probabilities(scored) if scored else None,
        complete=is_complete(outcome),
        blind=blind and bool(scored),
    )


def is_complete(outcome: Outcome) -> bool:
    """Whether every film of the study that is in scope was scored, now or before."""
    return outcome.reason is None and not outcome.study.broken_films and not outcome.study.other_patients


def seen_by_shadow(study: StudyInFlight, outcome: Outcome, films: Sequence[FilmResult], *, blind: bool) -> Seen | None:
    """The shadow's scores of a study; None if it missed a film, or there was none."""
    scored = [film.instance_id for film in films if film.state == "scored"]
    if not scored or any(i not in study.by_shadow for i in scored):
        return None
    scores = {i: study.by_shadow[i] for i in scored}
    return Seen(study.claimed.study_id, scores, complete=is_complete(outcome), blind=blind)


def _count(scorer: Scorer, outcome: Outcome, films: Sequence[FilmResult], tally: Tally) -> None:
    states = [film.state for film in films]
    tally.settle(outcome.state, films=states.count("scored"))
    scorer.metrics.settled(outcome.state, reason=outcome.reason, attempts=outcome.study.attempts)
    log.info(
        f"study_{outcome.state}",
        study_id=outcome.study.study_id,
        films=states.count("scored"),
        failed=states.count("quarantined"),
        reason=outcome.reason,
        attempts=outcome.study.attempts,
    )
