"""Studies scored without a network: given probabilities are recorded in the tables, by the rules of the scorer."""

from collections.abc import Sequence

import numpy as np

from db import ledger, results, runs
from db.ledger import Outcome
from db.results import FilmResult
from db.session import session_scope
from training.findings import FINDINGS
from worker.context import Context
from worker.ranking.priority import study_probabilities

PROBABILITIES = tuple(round(0.9 - 0.07 * number, 6) for number in range(len(FINDINGS)))


def score_at_once(context: Context, probabilities: Sequence[float] = PROBABILITIES) -> list[int]:
    """Score every waiting study; each film gets these probabilities, less a hundredth for each film before it."""
    live = context.live()
    with session_scope(context.engine) as session:
        run_id = runs.open_run(
            session,
            kind="score",
            checkpoint_id=live.checkpoint_id,
            policy_id=live.policy_id,
            settings={},
            shared=False,
        )
        studies = ledger.claim(session, worker="test", studies=1000, lease_minutes=1)
        films, places = [], []
        for study in studies:
            scores = [tuple(np.round(np.asarray(probabilities) - 0.01 * n, 6)) for n in range(len(study.films))]
            films += [
                FilmResult(film.instance_id, "scored", probabilities=tuple(map(float, score)))
                for film, score in zip(study.films, scores, strict=True)
            ]
            blind = context.blinding.draws(study.study_instance_uid)
            places.append(live.place(study.study_id, study_probabilities(scores), blind=blind))
        settled = [Outcome(study, "scored") for study in studies]
        ledger.settle(session, settled, worker="test", run_id=run_id)
        results.record_films(session, films, checkpoint_id=live.checkpoint_id, run_id=run_id)
        results.record_priorities(session, places, policy_id=live.policy_id)
    return [study.study_id for study in studies]
