"""After a change of checkpoint: what another one ranked is looked at, shown, and only then moved.

Looking writes scores and shadow places, by which nobody reads. Going live is one transaction.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from sqlalchemy.orm import Session

from db import audit, policies, registry, shadow
from db.base import database_now, rounded
from db.lookup import FilmFile
from db.results import PriorityResult, record_priorities, record_scores
from db.session import read_scope, session_scope
from db.shadow import Listed
from worker.checkpoints.comparison import Comparison, compare, pairs_of_list, places_to_be
from worker.context import Context, Live, actor
from worker.scoring.decoding import NetworkInput
from worker.scoring.inference import Classifier
from worker.scoring.scorer import open_network

FILMS_AT_ONCE = 64  # recorded together: what Ctrl-C costs
STUDIES_AT_ONCE = 5_000


class NotLive(ValueError):
    """These scores cannot go live; the text says why."""


@dataclass(frozen=True)
class Moved:
    """Studies that got a new place, and those left where they were: not looked at whole, or changed since."""

    moved: int
    left_out: int


# -------------------------------------------------------------------------------------------------------------- looking


def to_see(context: Context, live: Live, *, read: bool) -> int:
    """How many films a checkpoint has not seen, of the scored unread studies; with `read` also of those read."""
    with read_scope(context.engine) as session:
        return shadow.count_to_see(session, checkpoint_id=live.checkpoint_id, read=read)


def look(context: Context, live: Live, *, read: bool, on_films: Callable[[int], None] = lambda _: None) -> None:
    """Let a checkpoint see those films; no study's place changes.

    What is recorded is not looked at again, so whoever is interrupted starts it again. A film that cannot be read, or
    has other pixels now, is passed over.
    """
    with open_network(context, live) as (classifier, decoders):
        ahead = 2 * classifier.batch_size + context.settings.decoders
        films = decoders.inputs(_films(context, live, read=read), ahead=ahead)
        while batch := list(islice(films, FILMS_AT_ONCE)):
            good = [(film, network_input) for film, network_input in batch if isinstance(network_input, NetworkInput)]
            scores = _scores(classifier, good)
            with session_scope(context.engine) as session:
                record_scores(session, scores, checkpoint_id=live.checkpoint_id, run_id=None)
            on_films(len(batch))


def _films(context: Context, live: Live, *, read: bool) -> Iterator[FilmFile]:
    last = 0
    while True:
        with read_scope(context.engine) as session:
            films = shadow.films_to_see(
                session, checkpoint_id=live.checkpoint_id, read=read, after=last, limit=STUDIES_AT_ONCE
            )
        if not films:
            return
        yield from films
        last = films[-1].instance_id


def _scores(
    classifier: Classifier, films: Sequence[tuple[FilmFile, NetworkInput]]
) -> list[tuple[int, tuple[float, ...]]]:
    """Instance ids with probabilities; a film on which the network fails is found by halves and passed over."""
    if not films:
        return []
    try:
        found = classifier.predict(np.stack([network_input.image for _, network_input in films]))
    except RuntimeError:
        middle = len(films) // 2
        return _scores(classifier, films[:middle]) + _scores(classifier, films[middle:]) if middle else []
    return [(film.instance_id, tuple(map(rounded, row))) for (film, _), row in zip(films, found, strict=True)]


# -------------------------------------------------------------------------------------------------------------- showing


def preview(context: Context, live: Live, *, read: bool) -> Comparison:
    """Note where a checkpoint would put what another one ranked, and compare the worklist with what it would become."""
    with read_scope(context.engine) as session:
        studies, now = shadow.unread(session), database_now(session)
        places = places_to_be(session, studies, live)
        pairs = pairs_of_list(session, studies, places, live)
    _note(context, live, places)
    if read:
        for batch in _read_before(context):
            with read_scope(context.engine) as session:
                places = places_to_be(session, batch, live)
            _note(context, live, places)
    rules = live.policy
    return compare("the worklist", pairs, now=now, max_wait_minutes=rules.max_wait_minutes)


def _read_before(context: Context) -> Iterator[list[Listed]]:
    last = 0
    while True:
        with read_scope(context.engine) as session:
            batch = shadow.read_before(session, after=last, limit=STUDIES_AT_ONCE)
        if not batch:
            return
        yield batch
        last = batch[-1].study_id


def _note(context: Context, live: Live, places: Mapping[int, PriorityResult]) -> None:
    with session_scope(context.engine) as session:
        shadow.record_places(session, list(places.values()), checkpoint_id=live.checkpoint_id, policy_id=live.policy_id)


# ----------------------------------------------------------------------------------------------------------- going live


def make_live(context: Context, live: Live, *, read: bool) -> Moved:
    """Move every study that has been looked at to its new place, all in one transaction.

    Left where they were: studies not looked at whole, and those whose films or flag have changed since. Raises NotLive
    where another checkpoint or policy ranks now than the one by which they were looked at.
    """
    moved = left_out = last = 0
    with session_scope(context.engine) as session:
        _check(context, session, live)
        while True:
            ids, places = shadow.locked_batch(
                session,
                checkpoint_id=live.checkpoint_id,
                policy_id=live.policy_id,
                read=read,
                after=last,
                limit=STUDIES_AT_ONCE,
            )
            if not ids:
                break
            record_priorities(session, places, policy_id=live.policy_id)
            shadow.forget_places(session, [place.study_id for place in places], checkpoint_id=live.checkpoint_id)
            moved, left_out, last = moved + len(places), left_out + len(ids) - len(places), ids[-1]
        audit.record(session, actor=actor(), action="rescored", digest=live.digest, moved=moved, left_out=left_out)
    return Moved(moved, left_out)


def _check(context: Context, session: Session, live: Live) -> None:
    champion, policy = registry.champion(session), policies.active(session)
    named = context.settings.checkpoint is not None  # by the settings: then the champion does not matter
    if not named and (champion is None or champion.id != live.checkpoint_id):
        raise NotLive("another checkpoint ranks now than the one that looked: run `nightread rescore` again")
    if policy is None or policy.id != live.policy_id:
        raise NotLive("another policy ranks now than the one by which this was placed: run `nightread rescore` again")
