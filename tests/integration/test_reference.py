"""A checkpoint's reference in SQL: lift and share as its header's quantiles give them."""

from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, text

from db import registry
from db.session import session_scope
from migrations import views_0001
from training.calibration import reference
from training.findings import FINDINGS

LOOKUP = text(f"SELECT {views_0001.share(':finding', 'CAST(:p AS real)', checkpoint='1')}")


def add_checkpoint(engine: Engine, kept: dict[str, Any]) -> int:
    with session_scope(engine) as session:
        made: dict[str, Any] = {"digest": "ab" * 32, "path": "/x", "network": "mobilenet", "header": {}, "by": "test"}
        return registry.register(session, **made, reference=kept).id


def share(engine: Engine, finding: str, probability: float) -> float:
    with engine.connect() as connection:
        found = connection.execute(LOOKUP, {"finding": finding, "p": probability}).scalar_one()
    return round(float(found), 6)


def test_a_share_is_never_below_the_true_one_nor_a_step_above(engine: Engine):
    scores = np.random.default_rng(3).beta(0.4, 9, size=(1500, len(FINDINGS))).round(6)
    add_checkpoint(engine, reference(scores, findings=FINDINGS))
    for probability in np.quantile(scores[:, 3], [0, 0.2, 0.5, 0.9, 0.985, 1]).round(6):
        true = (scores[:, 3] >= probability).mean()
        assert true - 1 / 1500 <= share(engine, FINDINGS[3], probability) < true + 0.011 + 1 / 1500


def test_a_probability_that_many_films_share_has_the_share_of_all_of_them(engine: Engine):
    scores = np.zeros((100, len(FINDINGS)))
    scores[60:90, 0], scores[90:, 0] = 0.25, 0.75
    add_checkpoint(engine, reference(scores, findings=FINDINGS))
    assert share(engine, FINDINGS[0], 0.0) == 1
    assert share(engine, FINDINGS[0], 0.25) == pytest.approx(0.4, abs=0.011)
    assert share(engine, FINDINGS[0], 0.75) == pytest.approx(0.1, abs=0.011)


def test_the_mean_is_that_of_the_films_and_registering_again_changes_nothing(engine: Engine):
    scores = np.random.default_rng(4).beta(0.5, 12, size=(2000, len(FINDINGS)))
    kept = reference(scores, findings=FINDINGS)
    assert add_checkpoint(engine, kept) == add_checkpoint(engine, kept)
    with engine.connect() as connection:
        means = {row.finding: row.mean for row in connection.execute(text("SELECT * FROM reference_finding"))}
    assert [means[finding] for finding in FINDINGS] == pytest.approx(scores.mean(axis=0).tolist(), rel=0.04)


def test_a_checkpoint_without_a_reference_is_registered_without_one(engine: Engine):
    add_checkpoint(engine, {})
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM reference_share")).scalar_one() == 0
