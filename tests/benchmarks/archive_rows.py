"""An archive of any size for the benchmarks: settled studies with their films, scores, places and deliveries, of which
the newest are unread; and a backlog of waiting ones on top. Only PostgreSQL.

Rows are made by the server, 500,000 at a time, with the triggers off; the totals are counted at the end.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, Engine, text

from db import totals
from db.base import database_now
from db.models import FINDING_COLUMNS
from db.session import session_scope

STEP = 500_000  # rows in one transaction
GAP_SECONDS = 10  # between two studies: 8640 a day, 3.2 years for ten million
A_DAY = 86_400 // GAP_SECONDS
LATERALS_FROM = 1_000_000_000  # ids of the second instance that every fourth study has

DICE = "(((s.id * {factor}) % 1000003) / 1000003.0)"  # looks random in [0, 1), and is the same in every run
STATE = "CASE WHEN s.id % 1000 = 7 THEN 'quarantined' WHEN s.id % 50 = 0 THEN 'skipped' ELSE 'scored' END"
REASON = "CASE WHEN s.id % 1000 = 7 THEN 'films_quarantined' WHEN s.id % 50 = 0 THEN 'lateral_view' END"
UID = "'1.2.826.0.1.3680043.10.43.1.{kind}.' || lpad(s.id::text, 18, '0')"
SERIES = "generate_series(CAST({first} AS bigint), {last}) AS s(id)"

STUDY = f"""
    INSERT INTO study (id, study_instance_uid, accession_number, patient_key, patient_sex, patient_age_years, stat,
                       acquired_at, received_at, state, reason, revision, attempts, suspect, settled_at, run_id)
    SELECT s.id, {UID.format(kind=1)}, 'N' || s.id, 'P' || lpad((s.id / 3)::text, 31, '0'), 'F', 20 + s.id % 70,
           s.id % 100 = 0, at, at, {STATE}, {REASON}, 1, 1, false, at + interval '1 minute', (s.id - 1) / {A_DAY} + 1
    FROM {SERIES}, LATERAL (SELECT {{at}} AS at) t"""  # noqa: S608 - names from above, here and below
FILM = f"""
    INSERT INTO instance (id, study_id, sop_instance_uid, series_instance_uid, path, sop_class_uid, modality,
                          transfer_syntax_uid, photometric_interpretation, rows, columns, manufacturer, view, state,
                          reason, in_scope, pixel_digest, file_stamp, decided_under, received_at)
    SELECT s.id, s.id, {UID.format(kind=2)}, {UID.format(kind=3)}, '/films/2026/11/' || lpad(s.id::text, 18, '0'),
           '1.2.840.10008.5.1.4.1.1.1.1', 'DX', '1.2.840.10008.1.2.4.70', 'MONOCHROME2', 2500, 2048, 'ACME',
           CASE WHEN s.id % 50 = 0 THEN NULL ELSE 'PA' END, {STATE},
           CASE WHEN s.id % 1000 = 7 THEN 'truncated' WHEN s.id % 50 = 0 THEN 'lateral_view' END, true,
           md5(s.id::text) || md5((s.id + 1)::text), '1764370000.000000000-8388608', '0123456789abcdef', {{at}}
    FROM {SERIES}"""  # noqa: S608
LATERAL = f"""
    INSERT INTO instance (id, study_id, sop_instance_uid, series_instance_uid, path, sop_class_uid, modality, state,
                          reason, in_scope, decided_under, received_at)
    SELECT {LATERALS_FROM} + s.id, s.id, {UID.format(kind=4)}, {UID.format(kind=3)},
           '/films/2026/12/' || lpad(s.id::text, 18, '0'), '1.2.840.10008.5.1.4.1.1.1.1', 'DX', 'skipped',
           'lateral_view', true, '0123456789abcdef', {{at}}
    FROM {SERIES} WHERE s.id % 4 = 0"""  # noqa: S608
SCORE = f"""
    INSERT INTO film_score (id, instance_id, checkpoint_id, run_id, scored_at, {", ".join(FINDING_COLUMNS)})
    SELECT s.id, s.id, 1, (s.id - 1) / {A_DAY} + 1, {{at}},
           {", ".join(f"power({DICE.format(factor=7919 + 2 * i)}, 4)" for i in range(len(FINDING_COLUMNS)))}
    FROM {SERIES} WHERE {STATE} = 'scored'"""  # noqa: S608
PRIORITY = f"""
    INSERT INTO study_priority (study_id, stat, received_at, category, category_a, urgency, top_finding,
                                top_probability, flag, checkpoint_id, policy_id, ranked_at, read_at, read_by)
    SELECT s.id, s.id % 100 = 0, at, CASE WHEN NOT scored THEN 'B' WHEN dice >= .9 THEN 'A' WHEN dice >= .6 THEN 'B'
           ELSE 'D' END, scored AND dice >= .9, CASE WHEN scored THEN 1.4 * dice ELSE .4 END,
           CASE WHEN scored THEN 'Effusion' END, CASE WHEN scored THEN dice END,
           CASE WHEN NOT scored THEN 'not_scored' END, CASE WHEN scored THEN 1 END, 1, at + interval '1 minute',
           CASE WHEN s.id <= {{read}} THEN at + interval '2 hours' END, CASE WHEN s.id <= {{read}} THEN 'reader' END
    FROM {SERIES}, LATERAL (SELECT {{at}} AS at, {{scored}} AS scored, {DICE.format(factor=7919)} AS dice) t"""  # noqa: S608
DELIVERY = f"""
    INSERT INTO delivery (id, study_id, checkpoint_id, policy_id, revision, destination, kind, state, object_uid,
                          attempts, not_before, published_at, queued_at, sent_at)
    SELECT s.id, s.id, 1, 1, 1, 'pacs', 'sr', state, {UID.format(kind=5)}, 1, NULL, at, at,
           CASE WHEN state = 'confirmed' THEN at END
    FROM {SERIES}, LATERAL (SELECT {{at}} AS at, CASE WHEN s.id > {{settled}} - 1000 THEN 'waiting'
           WHEN s.id > {{settled}} - 1100 THEN 'failed' ELSE 'confirmed' END AS state) t
    WHERE {STATE} = 'scored'"""  # noqa: S608
REVIEW = f"""
    INSERT INTO review (id, study_id, finding, verdict, reader, reviewed_at)
    SELECT s.id, s.id, 'Effusion', CASE WHEN s.id % 300 = 0 THEN 'present' ELSE 'absent' END, 'reader', {{at}}
    FROM {SERIES} WHERE s.id % 100 = 1 AND s.id <= {{read}}"""  # noqa: S608
REJECTED = f"""
    INSERT INTO rejected_file (id, path_digest, path, reason, detail, received_at)
    SELECT s.id, md5(s.id::text), '/films/bad/' || s.id, 'not_dicom', 'This is no DICOM file', {{at}}
    FROM {SERIES} WHERE s.id % 1000 = 1"""  # noqa: S608
SETTLED = (STUDY, FILM, LATERAL, SCORE, PRIORITY, DELIVERY, REVIEW, REJECTED)
RUNS = f"""
    INSERT INTO run (id, kind, started_at, last_settled_at, finished_at, checkpoint_id, policy_id, settings, scored,
                     skipped, quarantined, films)
    SELECT s.id, 'night', began, began + interval '23 hours',
           CASE WHEN s.id < {{last}} THEN began + interval '1 day' END, 1, 1, '{{{{}}}}', 0, 0, 0, 0
    FROM {SERIES}, LATERAL (SELECT {{at}} AS began) t"""  # noqa: S608

WAITING_STUDY = f"""
    INSERT INTO study (id, study_instance_uid, accession_number, patient_key, stat, received_at, state, revision,
                       attempts, suspect)
    SELECT s.id, {UID.format(kind=1)}, 'N' || s.id, 'P' || lpad((s.id / 3)::text, 31, '0'), s.id % 100 = 0, {{at}},
           'waiting', 1, 0, false
    FROM {SERIES}"""  # noqa: S608
WAITING_FILM = f"""
    INSERT INTO instance (id, study_id, sop_instance_uid, path, modality, view, state, in_scope, received_at)
    SELECT s.id, s.id, {UID.format(kind=2)}, '/films/2026/11/' || lpad(s.id::text, 18, '0'), 'DX', 'PA', 'waiting',
           true, {{at}}
    FROM {SERIES}"""  # noqa: S608
WAITING = (WAITING_STUDY, WAITING_FILM, PRIORITY)

COUNTERS = ("study", "instance", "film_score", "delivery", "review", "rejected_file", "run")


@dataclass(frozen=True)
class Archive:
    """Numbers of studies: ids 1 to `settled` are settled, the last `unread` of them unread; those above wait."""

    settled: int
    unread: int
    waiting: int

    def add_settled(self, engine: Engine) -> None:
        """Fill a database that has only its schema, a champion (id 1) and a policy (id 1)."""
        with session_scope(engine) as session:
            newest = database_now(session) - timedelta(hours=1)
        at = _moment(newest, f"({self.settled} - s.id) * {GAP_SECONDS}")
        nights = -(-self.settled // A_DAY)
        night_began = _moment(newest, f"({self.settled} - (s.id - 1) * {A_DAY}) * {GAP_SECONDS}")
        with _loading(engine) as connection:
            # An hour after it went live the sweep no longer looks for studies that another policy placed.
            connection.exec_driver_sql("UPDATE policy SET activated_at = now() - interval '1 day'")
            connection.exec_driver_sql(RUNS.format(first=1, last=nights, at=night_began))
        scored = f"({STATE}) = 'scored'"
        self._add(engine, SETTLED, first=1, last=self.settled, at=at, scored=scored)

    def add_waiting(self, engine: Engine) -> None:
        """Let studies come within the last hour that nobody has scored."""
        with session_scope(engine) as session:
            newest = database_now(session)
        last = self.settled + self.waiting
        at = _moment(newest, f"({last} - s.id) * {3600 / max(self.waiting, 1):.6f}")
        self._add(engine, WAITING, first=self.settled + 1, last=last, at=at, scored="false")

    def _add(self, engine: Engine, statements: tuple[str, ...], *, first: int, last: int, **places: object) -> None:
        places |= {"read": self.settled - self.unread, "settled": self.settled}
        for begin in range(first, last + 1, STEP):
            with _loading(engine) as connection:
                for statement in statements:
                    end = min(begin + STEP - 1, last)
                    connection.exec_driver_sql(statement.format(first=begin, last=end, **places))
        with session_scope(engine) as session:
            for table in COUNTERS:
                counter = f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), (SELECT max(id) FROM {table}))"  # noqa: S608
                session.execute(text(counter))
            totals.recount(session)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")


def _moment(newest: datetime, seconds_before: str) -> str:
    return f"TIMESTAMPTZ '{newest.isoformat()}' - make_interval(secs => {seconds_before})"


@contextmanager
def _loading(engine: Engine) -> Iterator[Connection]:
    """A transaction in which % means no parameter, no trigger fires and no foreign key is checked."""
    with engine.connect().execution_options(no_parameters=True) as connection, connection.begin():
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        yield connection
