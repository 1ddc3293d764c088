"""Reading on the page: the order of the list, claims that one wins, reviews as by command, blind studies."""

import json
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import delete, select, text, update
from typer.testing import CliRunner

from db import claims, registry
from db.base import database_now
from db.models import FINDING_COLUMNS, Audit, FilmScore, ReadingClaim, Review, Run, Study, StudyPriority
from db.reading import Answer
from db.session import read_scope, session_scope
from db.set_aside import set_aside
from db.worklist import worklist
from tests.support.night_rows import add_champion, add_studies, open_run
from tests.support.values import present
from tests.support.web import Visitor, add_night, add_token, add_user, rows_of, signed_in
from training.findings import FINDINGS
from worker.cli.app import app as commands
from worker.context import Context
from worker.web.app import create_app

AT_ONCE = 50
# What each answer has of the time: clocks, and in JSON how long a study has waited, to the last digit.
TIME_AND_LENGTH = re.compile(
    r"\d\d:\d\d(:\d\d)?(\.\d+)?|\"waited_minutes\": [\d.]+|'content-length': '\d+', 'content-type': 'application/json'"
)


@pytest.fixture
def context(make_context, database_url):
    return make_context(database_url=database_url, checkpoint=None)


@pytest.fixture
def embedded(make_context):
    context = make_context(checkpoint=None)
    add_night(context)
    return context


def verdicts(context: Context) -> list[tuple]:
    with read_scope(context.engine) as session:
        rows = session.scalars(select(Review).order_by(Review.study_id, Review.finding, Review.reader))
        return [(row.study_id, row.finding, row.verdict, row.reader) for row in rows]


def later(context: Context, **by: float) -> None:
    """Let time pass for the claims."""
    with session_scope(context.engine) as session:
        earlier = database_now(session) - timedelta(**by)
        session.execute(update(ReadingClaim).values(claimed_at=earlier, lease_expires_at=earlier + claims.LEASE))


# ------------------------------------------------------------------------------------------------------------ the list


def test_the_pages_and_the_api_have_the_order_of_the_view_row_by_row(context):
    with session_scope(context.engine) as session:
        add_champion(session)
        run = open_run(session)
        add_studies(
            session, run, [{"Pneumothorax": (n * 37 % 100) / 100, "Effusion": (n * 61 % 100) / 100} for n in range(120)]
        )
        now = database_now(session)
        add_studies(session, run, [{"Mass": 0.7}] * 8, first=200, stat=True)
        add_studies(session, run, [{"Mass": 0.1}] * 8, first=300, received_at=now - timedelta(hours=30))
    with read_scope(context.engine) as session:
        expected = [dict(row) for row in worklist(session)]
    app = create_app(context)
    anna, program = signed_in(app, "Anna", "viewer"), Visitor(app)
    shown = [study for page in (1, 2, 3) for study in rows_of(anna.get(f"/?page={page}").text)]
    assert shown == [row["study_id"] for row in expected]
    add_token(context, "Anna")
    rows = []
    for page in (1, 2, 3, 4):
        answer = program.get(f"/api/worklist?per_page=40&page={page}", authorization="Bearer t").json()
        assert answer["total"] == len(expected)
        rows += answer["studies"]
    assert rows == json.loads(json.dumps(expected, default=lambda value: value.isoformat()))
    for query, kept in (
        ("category=A", lambda row: row["category"] == "A"),
        ("stat=1", lambda row: row["stat"]),
        ("overdue=1", lambda row: row["overdue"]),
        ("finding=Effusion&category=B", lambda row: (row["top_finding"], row["category"]) == ("Effusion", "B")),
        ("accession=ACC0030", lambda row: row["accession_number"].startswith("ACC0030")),
        ("flag=blind", lambda _row: False),
    ):
        wanted = [row["study_id"] for row in expected if kept(row)]
        assert rows_of(anna.get(f"/?{query}").text) == wanted[:50], query
    assert "%" in anna.get("/?accession=%25").text, "a sign that means something in SQL means itself"
    assert rows_of(anna.get("/?accession=%25").text) == []


def test_a_page_beyond_the_end_of_a_list_is_its_last_one_and_the_total_stays_true(embedded):
    app = create_app(embedded)
    anna, program = signed_in(app, "Anna", "reader"), Visitor(app)
    add_token(embedded, "Anna")
    for address in ("/?page=3", "/?page=3&category=A"):
        page = anna.get(address, hx_request="true").text
        assert rows_of(page) == rows_of(anna.get("/").text) != [], address
        assert "Nothing waits to be read" not in page, address
    answer = program.get("/api/worklist?page=3", authorization="Bearer t").json()
    assert (answer["studies"], answer["total"]) == ([], 3)


def test_a_list_that_changes_between_two_pages_of_the_api_says_so_by_its_total(embedded):
    app = create_app(embedded)
    anna, program = signed_in(app, "Anna", "reader"), Visitor(app)
    add_token(embedded, "Anna")
    first, second = [
        (program.get(f"/api/worklist?per_page=2&page={page}", authorization="Bearer t").json(), anna.post(read))[0]
        for page, read in ((1, "/studies/1/read"), (2, "/studies/2/read"))
    ]
    assert [row["study_id"] for row in first["studies"]] == [1, 2]
    assert (first["total"], second["total"], second["studies"]) == (3, 2, []), "study 3 has moved up to the first page"


def test_the_api_gives_no_more_rows_at_once_than_it_says(embedded):
    app = create_app(embedded)
    signed_in(app, "Anna", "reader")
    add_token(embedded, "Anna")
    for number in ("501", "0", "x", "000000001000000", "9" * 5000):
        answer = Visitor(app).get(f"/api/worklist?per_page={number}", authorization="Bearer t")
        assert answer.status_code == 400, number


def test_a_refresh_brings_the_part_that_changes_and_no_more(embedded):
    anna = signed_in(create_app(embedded), "Anna", "reader")
    part = anna.get("/?category=A", hx_request="true").text
    assert part.lstrip().startswith('<section id="list"')
    assert "<html" not in part
    assert rows_of(part) == rows_of(anna.get("/?category=A").text)
    assert 'hx-get="/?category=A"' in part


# ------------------------------------------------------------------------------------------------------------- claims


def test_of_fifty_claims_at_once_one_wins_and_the_others_get_a_sentence(context):
    add_night(context)
    app = create_app(context)
    readers = [signed_in(app, f"Reader {number}", "reader") for number in range(AT_ONCE)]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        answers = list(threads.map(lambda reader: reader.post("/studies/1/claim"), readers))
    assert sorted(answer.status_code for answer in answers) == [303] + [409] * (AT_ONCE - 1)
    with read_scope(context.engine) as session:
        holder = claims.holders(session, [1])[1].reader
    winner = next(n for n, answer in enumerate(answers) if answer.status_code == 303)
    assert holder == f"Reader {winner}"
    refused = [answer.text for answer in answers if answer.status_code == 409]
    assert all(f"{holder} is reading this study since " in page for page in refused)


def test_a_claim_that_is_not_renewed_is_free_and_one_that_is_renewed_is_kept(context):
    add_night(context)
    app = create_app(context)
    anna, ben = (signed_in(app, name, "reader") for name in ("Anna", "Ben"))
    assert anna.post("/studies/1/claim").status_code == 303
    later(context, minutes=14, seconds=50)
    assert ben.post("/studies/1/claim").status_code == 409
    assert anna.post("/studies/1/renew").status_code == 200
    with read_scope(context.engine) as session:
        left = claims.holders(session, [1])[1].lease_expires_at - database_now(session)
    assert timedelta(minutes=14) < left <= claims.LEASE
    later(context, minutes=15, seconds=1)
    assert "Being read by" in anna.get("/").text
    assert 'class="held' not in anna.get("/").text
    assert anna.post("/studies/1/renew").status_code == 409, "too late"
    assert ben.post("/studies/1/claim").status_code == 303
    lost = anna.post("/studies/1/renew")
    assert (lost.status_code, "<strong>Ben</strong> is reading this study" in lost.text) == (409, True)
    assert anna.post("/studies/1/claim").status_code == 409


def test_of_two_tabs_of_one_reader_each_may_claim_and_giving_back_in_one_is_told_in_the_other(embedded):
    anna = signed_in(create_app(embedded), "Anna", "reader")
    assert [anna.post("/studies/1/claim").status_code for _ in ("one tab", "the other")] == [303, 303]
    assert anna.post("/studies/1/release").status_code == 303
    assert anna.post("/studies/1/renew").status_code == 409
    assert anna.post("/studies/1/read").status_code == 303, "nobody else holds it"


def test_a_study_s_page_that_is_open_is_told_who_reads_it_and_that_it_has_been_read(embedded):
    app = create_app(embedded)
    anna, ben = (signed_in(app, name, "reader") for name in ("Anna", "Ben"))
    page = anna.get("/studies/1").text
    assert "Nobody is reading this study" in page
    assert 'hx-get="/studies/1/claim-state" hx-trigger="every 10000ms"' in page
    ben.post("/studies/1/claim")
    assert "<strong>Ben</strong> is reading this study" in anna.get("/studies/1/claim-state").text
    assert "You are reading this study" in ben.get("/studies/1/claim-state").text
    ben.post("/studies/1/read")
    assert "has been read by Ben" in anna.get("/studies/1/claim-state").text
    assert anna.get("/studies/99/claim-state").status_code == 404


def test_a_study_is_given_back_or_taken_over_with_a_reason_that_the_other_sees(embedded):
    app = create_app(embedded)
    anna, ben = (signed_in(app, name, "reader") for name in ("Anna", "Ben"))
    anna.post("/studies/1/claim")
    assert ben.post("/studies/1/take-over", reason="  ").status_code == 400
    assert ben.post("/studies/1/take-over", reason="Anna went home").status_code == 303
    page = anna.get("/studies/1").text
    assert "Ben</strong> is reading this study" in page
    assert "Taken over from Anna: Anna went home." in page
    anna.post("/studies/1/release")
    assert "Ben</strong> is reading this study" in anna.get("/studies/1").text, "only one's own claim is given back"
    assert ben.post("/studies/1/release").status_code == 303
    assert "Nobody is reading this study" in anna.get("/studies/1").text


def test_read_takes_a_study_off_the_list_unless_another_reads_it_and_undo_brings_it_back(embedded):
    app = create_app(embedded)
    anna, ben = (signed_in(app, name, "reader") for name in ("Anna", "Ben"))
    order = rows_of(anna.get("/").text)
    anna.post(f"/studies/{order[0]}/claim")
    refused = ben.post(f"/studies/{order[0]}/read")
    assert refused.status_code == 409
    assert "Anna is reading this study" in refused.text
    answer = anna.post(f"/studies/{order[0]}/read", back="/?category=A")
    assert answer.headers["location"] == f"/?category=A&read={order[0]}"
    page = anna.get(answer.headers["location"]).text
    assert rows_of(page) == order[1:]
    assert f'action="/studies/{order[0]}/unread"' in page
    assert "marked as read before" in ben.post(f"/studies/{order[0]}/read").text
    with read_scope(embedded.engine) as session:
        assert session.get_one(StudyPriority, order[0]).read_by == "Anna"
    assert anna.post(f"/studies/{order[0]}/unread").status_code == 303
    assert rows_of(anna.get("/").text) == order
    anna.post(f"/studies/{order[0]}/read")
    assert ben.post(f"/studies/{order[0]}/unread").status_code == 303, "another reader may find it not read after all"
    assert rows_of(anna.get("/").text) == order
    with read_scope(embedded.engine) as session:
        undone = session.scalars(select(Audit.actor).where(Audit.action == "studies marked unread")).all()
    assert undone == ["Anna", "Ben"]
    assert "marked as read" not in anna.get(f"/?read={order[0]}").text, "it is not, any more"


# ------------------------------------------------------------------------------------------------------------ reviews


def test_a_review_on_the_page_is_what_the_command_keeps(embedded, monkeypatch):
    monkeypatch.setattr("os.umask", lambda _mask: 0)
    for name in ("database_url", "state_folder"):
        monkeypatch.setenv(f"NIGHTREAD_{name.upper()}", str(getattr(embedded.settings, name)))
    given = {"Mass": "present", "Effusion": "absent", "Hernia": "not_assessed"}
    anna = signed_in(create_app(embedded), "Anna", "reader")
    assert anna.post("/studies/1/review", **{f"verdict-{f}": word for f, word in given.items()}).status_code == 303
    words = [part for finding, word in given.items() for part in (f"--{word.replace('_', '-')}", finding)]
    assert CliRunner().invoke(commands, ["review", "2.25.2", "--reader", "Anna", *words]).exit_code == 0
    rows = verdicts(embedded)
    assert [row[1:] for row in rows if row[0] == 1] == [row[1:] for row in rows if row[0] == 2] != []
    assert {finding: verdict for _, finding, verdict, _ in rows[:3]} == given
    anna.post("/studies/1/review", **{"verdict-Mass": "absent"})
    rows = verdicts(embedded)
    assert (1, "Mass", "absent", "Anna") in rows, "a later opinion replaces the earlier one"
    anna.post("/studies/1/review", **{"verdict-Mass": "absent"})
    assert verdicts(embedded) == rows, "a form that is sent twice says nothing new"


def test_the_rest_absent_covers_every_finding_that_was_not_marked(embedded):
    anna = signed_in(create_app(embedded), "Anna", "reader")
    assert anna.post("/studies/1/review", rest="absent", **{"verdict-Mass": "present"}).status_code == 303
    assert {finding: verdict for _, finding, verdict, _ in verdicts(embedded)} == {
        finding: "present" if finding == "Mass" else "absent" for finding in FINDINGS
    }
    refused = anna.post("/studies/2/review", **{"verdict-Mass": "perhaps"})
    assert (refused.status_code, "Nothing is marked" in refused.text) == (400, True)


def test_a_review_that_is_refused_is_none_in_the_audit(embedded, monkeypatch):
    anna = signed_in(create_app(embedded), "Anna", "reader")
    monkeypatch.setattr(
        "worker.web.actions.record_opinions", lambda _session, opinions: [Answer(0, "why")] * len(opinions)
    )
    refused = anna.post("/studies/1/review", rest="absent")
    assert (refused.status_code, "Not saved: why." in refused.text) == (409, True)
    with read_scope(embedded.engine) as session:
        assert "study reviewed" not in session.scalars(select(Audit.action)).all()


# ------------------------------------------------------------------------------------------ what nobody may see (yet)


@pytest.fixture
def blind(embedded):
    """Study 1 is of the blind share: scored like the others, listed as if it had not been."""
    with session_scope(embedded.engine) as session:
        place = {"category": "B", "category_a": False, "urgency": 0.4, "flag": "blind", "checkpoint_id": None}
        session.execute(update(StudyPriority).where(StudyPriority.study_id == 1).values(**place))
    return embedded


def everything_of(app, reader: Visitor, program: Visitor) -> list[str]:
    """All that the page says of study 1: bodies, headers and addresses of pictures."""
    answers = [reader.get(path) for path in ("/studies/1", "/studies/1?heat=Pneumothorax", "/?accession=ACC00001")]
    answers += [
        program.get(path, authorization="Bearer t") for path in ("/api/studies/2.25.1", "/api/worklist?flag=blind")
    ]
    answers += [reader.get(f"/films/1/heat/{finding}.png") for finding in FINDINGS]
    assert {answer.status_code for answer in answers[5:]} == {404}
    return [answer.text + str(answer.headers) for answer in answers]


def test_a_blind_study_tells_nothing_before_or_after_its_review(blind, monkeypatch):
    monkeypatch.setattr("worker.web.images.Pictures.heat", lambda *_: b"a heat map")
    app = create_app(blind)
    anna, program = signed_in(app, "Anna", "administrator"), Visitor(app)
    add_token(blind, "Anna")
    assert "/films/2/heat/Pneumothorax.png" in anna.get("/studies/2").text, "another study does tell"
    assert anna.get("/films/2/heat/Pneumothorax.png").content == b"a heat map"
    for _ in ("before", "after"):
        for page in everything_of(app, anna, program):
            assert "heat/" not in page
            assert not re.search(r"(?<!\d)0\.9|\b90\s*%", page), "its probability"
            assert "What adds to its urgency" not in page
        answer = program.get("/api/studies/2.25.1", authorization="Bearer t").json()
        assert answer["findings"] is None
        assert answer["place"]["top_finding"] is None
        assert anna.post("/studies/1/review", rest="absent").status_code == 303


def test_no_answer_about_a_blind_study_depends_on_what_the_model_saw(blind):
    app = create_app(blind)
    anna, program = signed_in(app, "Anna", "administrator"), Visitor(app)
    add_token(blind, "Anna")

    def seen(*studies: int, scores: float) -> list[str]:
        """All answers once these studies have such scores."""
        with session_scope(blind.engine) as session:
            columns = dict.fromkeys(FINDING_COLUMNS, scores)
            session.execute(update(FilmScore).where(FilmScore.instance_id.in_(studies)).values(**columns))
        others = [anna.get(path) for path in ("/", "/films/1/thumbnail.png", "/system/runs/1")]
        told = everything_of(app, anna, program) + [answer.text + str(answer.headers) for answer in others]
        return [TIME_AND_LENGTH.sub("", text) for text in told]

    low = seen(1, scores=0.01)
    assert low == seen(1, scores=0.99)
    assert low != seen(2, scores=0.02), "another study's do show"


@pytest.fixture
def review_first(embedded):
    """Of study 1 the list names a finding."""
    with session_scope(embedded.engine) as session:
        seen = {"top_finding": "Pneumothorax", "top_probability": 0.9}
        session.execute(update(StudyPriority).where(StudyPriority.study_id == 1).values(**seen))
    return Context(embedded.settings.changed(web={"review_first": True}))


def test_where_the_review_comes_first_a_reader_sees_scores_only_after_their_own(review_first, monkeypatch):
    monkeypatch.setattr("worker.web.images.Pictures.heat", lambda *_: b"a heat map")
    context = review_first
    app = create_app(context)
    anna, ben = (signed_in(app, name, "reader") for name in ("Anna", "Ben"))
    assert ben.post("/studies/1/review", **{"verdict-Mass": "present"}).status_code == 303
    page, listed = anna.get("/studies/1").text, anna.get("/?accession=ACC00001&finding=Mass").text
    assert "<strong>Pneumothorax 90\xa0%</strong>" not in page
    assert "What adds to its urgency" not in page
    assert "heat/" not in page
    assert "Confirmed so far" not in page, "another's verdict would tell too"
    assert anna.get("/films/1/heat/Pneumothorax.png").status_code == 404
    assert "after your review" in listed
    assert "Pneumothorax" not in re.sub(r"(?s)<form.*?</form>", "", listed)
    assert rows_of(listed) == [1], "a filter by finding is none"
    assert anna.post("/studies/1/review", rest="absent").status_code == 303
    assert anna.get("/films/1/heat/Pneumothorax.png").content == b"a heat map"
    page = anna.get("/studies/1").text
    assert "What adds to its urgency" in page
    assert "<strong>Pneumothorax 90\xa0%</strong>" in page, "what the list names first stands at the top"
    shown = re.sub(r"(?s)<form.*?</form>", "", anna.get("/?accession=ACC00001").text)
    assert ("after your review" in shown, "Pneumothorax" in shown) == (False, True)


def test_where_the_review_comes_first_a_reader_s_token_tells_no_more_and_a_viewer_s_tells_all(review_first):
    context = review_first
    app = create_app(context)
    anna = signed_in(app, "Anna", "reader")
    add_user(context, "ris", "viewer")
    for name in ("Anna", "ris"):
        add_token(context, name, text=f"of {name}")

    def told(name: str, path: str):
        return Visitor(app).get(f"/api/{path}", authorization=f"Bearer of {name}")

    def scores(name: str) -> list:
        listed, study = told(name, "worklist").json()["studies"][0], told(name, "studies/2.25.1").json()
        names = ("urgency", "top_finding", "top_probability", "top_lift", "top_share")
        place = [study["place"][name] for name in (*names, "above_next_because", "category_because")]
        return [listed[name] for name in names] + place + [study["findings"], study["reviews"]]

    assert set(scores("Anna")) == {None}
    for path in ("worklist", "studies/2.25.1"):
        assert not re.search("|".join(FINDINGS), told("Anna", path).text), "no finding is named"
    assert told("Anna", "worklist?finding=Mass").status_code == 400
    for shown in told("ris", "worklist").json()["studies"][0], told("ris", "studies/2.25.1").json()["place"]:
        assert shown["top_finding"] == "Pneumothorax", "a RIS may have them: what it shows is the site's to say"
    assert told("ris", "worklist?finding=Mass").status_code == 200
    assert anna.post("/studies/1/review", rest="absent").status_code == 303
    assert scores("Anna") == scores("ris")
    assert told("Anna", "studies/2.25.2").json()["findings"] is None, "of another study"


def test_where_the_review_comes_first_no_page_of_the_site_is_the_morning_page(review_first):
    app = create_app(review_first)
    eve = signed_in(app, "Eve", "administrator")
    assert 'href="/system/runs/1"' not in eve.get("/system").text
    refused = eve.get("/system/runs/1")
    assert (refused.status_code, "`nightread report`" in refused.text) == (403, True)


def test_a_study_that_was_never_on_the_list_does_not_wait(embedded):
    with session_scope(embedded.engine) as session:
        session.execute(delete(StudyPriority).where(StudyPriority.study_id == 1))
    page = signed_in(create_app(embedded), "Anna", "reader").get("/studies/1").text
    assert ", never on the list" in page
    assert "none: it was never on the list" in page
    assert ", waits " not in page


def test_earlier_studies_of_the_patient_are_listed_and_the_viewer_is_linked(embedded):
    context = Context(
        embedded.settings.changed(viewer_url="https://pacs.example/v?uid={study_instance_uid}&a={accession_number}")
    )
    with session_scope(context.engine) as session:
        session.execute(
            update(Study).where(Study.id == 3).values(patient_key="somebody else", accession_number="A&B 1")
        )
    anna = signed_in(create_app(context), "Anna", "viewer")
    page = anna.get("/studies/2").text
    assert 'href="/studies/1?back=' in page
    assert 'href="/studies/3?back=' not in page
    assert "https://pacs.example/v?uid=2.25.3&amp;a=A%26B%201" in anna.get("/studies/3").text


def test_the_system_page_requeues_by_reason(embedded):
    with session_scope(embedded.engine) as session:
        session.execute(update(Study).where(Study.id == 1).values(state="quarantined", reason="decoder_crashed"))
        session.execute(
            text("UPDATE instance SET state = 'quarantined', reason = 'decoder_crashed' WHERE study_id = 1")
        )
    anna = signed_in(create_app(embedded), "Anna", "administrator")
    page = anna.get("/system").text
    assert "Requeue all: decoder crashed" in page
    assert anna.post("/system/requeue").status_code == 400, "a form that names nothing does not mean everything"
    answer = anna.post("/system/requeue", reason="decoder_crashed")
    assert answer.headers["location"].startswith("/system?requeued=1")
    with read_scope(embedded.engine) as session:
        assert session.get_one(Study, 1).state == "waiting"


def test_the_system_page_reads_no_more_of_a_large_quarantine_than_it_shows(embedded, monkeypatch):
    with session_scope(embedded.engine) as session:
        session.execute(text("UPDATE instance SET state = 'quarantined', reason = 'decoder_crashed'"))
    with read_scope(embedded.engine) as session:
        first, _ = rows = set_aside(session, "quarantined", limit=2)
        assert rows == set_aside(session, "quarantined")[:2]
    monkeypatch.setattr("worker.web.system.QUARANTINED", 1)
    page = signed_in(create_app(embedded), "Anna", "administrator").get("/system").text
    assert page.count('aria-label="Requeue ') == 1
    assert f'aria-label="Requeue {first["accession_number"]}"' in page
    assert "And more: <code>nightread status --quarantined</code>" in page


def test_a_morning_page_that_was_opened_during_its_run_is_made_anew_after_it(embedded):
    anna = signed_in(create_app(embedded), "Anna", "administrator")
    during = anna.get("/system/runs/1")
    with session_scope(embedded.engine) as session:
        session.execute(update(Run).values(finished_at=database_now(session)))
    after = anna.get("/system/runs/1")
    assert during.status_code == after.status_code == 200
    assert after.text != during.text
    assert anna.get("/system/runs/1").text == after.text, "now it is kept"
    with read_scope(embedded.engine) as session:
        ended = present(session.scalars(select(Run.finished_at)).one())
        age = (embedded.pictures_folder / "run-1.html").stat().st_mtime
        assert age == pytest.approx(ended.timestamp()), "as old as its run, for `nightread prune`"
        looks = session.scalars(select(Audit.detail).where(Audit.action == "morning page viewed")).all()
    assert looks == [{"run": 1}] * 3


def test_users_are_kept_by_commands(embedded, monkeypatch):
    monkeypatch.setattr("os.umask", lambda _mask: 0)
    for name in ("database_url", "state_folder"):
        monkeypatch.setenv(f"NIGHTREAD_{name.upper()}", str(getattr(embedded.settings, name)))

    def nightread(*words: str, typed: str = ""):
        return CliRunner().invoke(commands, ["users", *words], input=typed)

    assert nightread("add", "Dr. Anna", "--role", "reader", typed="a long enough one\n").exit_code == 0
    assert "already" in nightread("add", "dr. anna", "--role", "reader", typed="a long enough one\n").stderr
    assert nightread("add", "Ben", "--role", "reader", typed="short\n").exit_code == 2
    made = nightread("token", "Dr. Anna", "--name", "ris").stdout.strip()
    assert Visitor(create_app(embedded)).get("/api/worklist", authorization=f"Bearer {made}").status_code == 200
    assert nightread("role", "Dr. Anna", "owner").exit_code == 2
    assert nightread("role", "Dr. Anna", "viewer").stdout == "Dr. Anna is viewer now.\n"
    assert nightread("disable", "Dr. Anna").exit_code == 0
    assert Visitor(create_app(embedded)).get("/api/worklist", authorization=f"Bearer {made}").status_code == 401
    listed = json.loads(nightread("list", "--json").stdout)
    assert [(user["name"], user["role"], user["disabled_at"] is None) for user in listed] == [
        ("Dr. Anna", "viewer", False)
    ]
    assert nightread("password", "Dr. Anna", typed="another long one\n").exit_code == 0
    assert nightread("disable", "Nobody").exit_code == 2
    add_user(embedded, "Eve", "viewer")


def test_a_finding_below_its_threshold_has_a_sentence_where_its_heat_map_would_be(embedded, monkeypatch):
    monkeypatch.setattr("worker.web.images.Pictures.heat", lambda *_: b"a picture")
    anna = signed_in(create_app(embedded), "Anna", "reader")
    page = anna.get("/studies/2?heat=Mass").text
    assert "/films/2/heat/Pneumothorax.png" in page
    assert "heat/Mass" not in page
    assert "heat=Mass" not in page
    assert "No heat map: the finding does not reach its threshold." in page
    assert anna.get("/films/2/heat/Pneumothorax.png").status_code == 200
    for typed in ("Mass", "Nothing"):
        assert anna.get(f"/films/2/heat/{typed}.png").status_code == 404, "nor by an address typed by hand"
    with session_scope(embedded.engine) as session:
        row = present(registry.champion(session))
        no_better = {"Pneumothorax": {"boxes": 100, "hits": 10, "chance": 0.1}}
        row.header = {**row.header, "training": {"pointing": no_better}}
    assert anna.get("/films/2/heat/Pneumothorax.png").status_code == 404, "its maps point no better than chance"


def test_serve_listens_for_others_only_where_its_hosts_are_named_and_makes_the_first_user_here_alone(
    embedded, monkeypatch
):
    served: list[Any] = []  # uvicorn's configurations
    monkeypatch.setattr("os.umask", lambda _mask: 0)
    monkeypatch.setattr("uvicorn.Server.run", lambda server, **_sockets: served.append(server.config))
    for name in ("database_url", "state_folder"):
        monkeypatch.setenv(f"NIGHTREAD_{name.upper()}", str(getattr(embedded.settings, name)))

    def serve(*words: str):
        return CliRunner().invoke(commands, ["serve", *words])

    refused = serve("--host", "192.0.2.1")
    assert (refused.exit_code, served) == (2, [])
    assert "NIGHTREAD_WEB_HOSTS" in refused.stderr
    here = serve("--port", "0")
    assert not served[0].access_log, "an address can hold an accession number"
    path = re.search(r"http://127\.0\.0\.1:[1-9]\d*(/first/\S+)", here.stdout)
    assert path is not None
    assert Visitor(served[0].app).get(path[1]).status_code == 200
    monkeypatch.setenv("NIGHTREAD_WEB_HOSTS", "nightread.example")
    with socket.create_server(("127.0.0.1", 0)) as taken, monkeypatch.context() as patch:
        in_use = serve("--port", str(taken.getsockname()[1]))
        assert (in_use.exit_code, "in use" in in_use.stderr, in_use.stdout) == (2, True, "")
        patch.setattr("worker.cli.serve._listening", lambda _host, _port: taken.dup())
        assert "/first/" not in (others := serve("--host", "192.0.2.1").stdout)
    assert "nightread users add" in others
    add_user(embedded, "Anna", "reader")
    assert "Nobody may sign in" not in serve("--port", "0").stdout
