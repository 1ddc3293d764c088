"""The story of a night: claim -> decode -> predict -> rank -> record, until nothing waits.

Studies are claimed a little ahead of the network, so that the decoders always have films; films are predicted in full
batches whatever study they belong to; a study is recorded in one transaction as soon as its last film is through.
"""

import time
from collections.abc import Callable

from sqlalchemy import Engine

from db import ledger, runs
from db.session import read_scope, session_scope
from worker.patience import patience
from worker.scoring.in_flight import InFlight
from worker.scoring.recording import Tally, record
from worker.scoring.scorer import Scorer

# A database that restarts costs seconds; one that stays away ends the pass, and the leases run out.
A_RESTART_SECONDS = 45.0


def score_waiting(
    scorer: Scorer,
    *,
    kind: str,
    first: int | None = None,
    may_claim: Callable[[], bool] = lambda: True,
    on_settled: Callable[[int], None] = lambda _: None,
) -> Tally:
    """Score what waits, the study `first` before the others, until nothing more can be claimed or the scorer must stop.

    While `may_claim()` is false what is in flight is finished and nothing is added (a new checkpoint is live). Whatever
    ends this (a stop, Ctrl-C, an error) gives back what is in flight; what was recorded stays.
    """
    with patience(seconds=A_RESTART_SECONDS, should_stop=scorer.should_stop):
        return _score_waiting(scorer, kind, first, may_claim, on_settled)


def _score_waiting(
    scorer: Scorer, kind: str, first: int | None, may_claim: Callable[[], bool], on_settled: Callable[[int], None]
) -> Tally:
    tally, in_flight = Tally(), InFlight(scorer)
    run_id = None
    try:
        while True:
            if scorer.should_stop():
                return tally
            if may_claim():
                in_flight.claim(first)
            first = None
            if not in_flight.studies:
                scorer.metrics.progressed()
                return tally
            run_id = run_id or _open_run(scorer, kind)
            in_flight.predict(in_flight.next_batch())
            finished = in_flight.take_finished()
            if finished:
                record(scorer, finished, run_id=run_id, tally=tally)
                on_settled(len(finished))
            scorer.metrics.progressed()
    finally:
        in_flight.give_back()
        if run_id is not None and kind == "score":
            with session_scope(scorer.engine) as session:
                runs.close(session, run_id)


def score_until_done(scorer: Scorer, *, on_settled: Callable[[int], None] = lambda _: None) -> Tally:
    """`score_waiting` until no study is held by anyone: what a process that died held comes free within its lease."""
    total = score_waiting(scorer, kind="score", on_settled=on_settled)
    while _any_held(scorer.engine):
        time.sleep(1)
        total += score_waiting(scorer, kind="score", on_settled=on_settled)
    return total


def _any_held(engine: Engine) -> bool:
    with read_scope(engine) as session:
        return ledger.any_held(session)


def _open_run(scorer: Scorer, kind: str) -> int:
    settings = scorer.context.settings.model_dump(
        mode="json", include={"batch_size", "decoders", "device", "modalities", "allow_secondary_capture"}
    )
    with session_scope(scorer.engine) as session:
        return runs.open_run(
            session,
            kind=kind,
            checkpoint_id=scorer.live.checkpoint_id,
            policy_id=scorer.live.policy_id,
            settings=settings,
            shared=kind == "night",
        )
