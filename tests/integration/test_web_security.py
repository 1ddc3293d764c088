"""The web page refuses whom it must, and what it shows is text: people, forms, hosts, addresses, headers."""

import re
from datetime import timedelta
from urllib.parse import quote

import pytest
from sqlalchemy import select, update
from starlette.testclient import TestClient

from db import api_tokens, users
from db.base import database_now
from db.models import ApiToken, Audit, LoginFailure, ReadingClaim, Role, Study, WebSession
from db.session import read_scope, session_scope
from tests.support.web import ADDRESS, PASSWORD, Visitor, add_night, add_user, csrf_on, signed_in
from worker.context import Context
from worker.web.app import create_app
from worker.web.auth import TRIES
from worker.web.passwords import digest_of, password_hash
from worker.web.requests import SESSION, VISIT, csrf_of

PAGES = ["/", "/studies/1", "/films/1.png", "/films/1/thumbnail.png", "/films/1/heat/Mass.png", "/system", "/api"]
READERS = ["claim", "take-over", "release", "renew", "read", "unread", "review"]
SCRIPT = "<script>alert(1)</script>"


@pytest.fixture
def context(make_context):
    context = make_context(checkpoint=None)
    add_night(context)
    return context


@pytest.fixture
def app(context):
    return create_app(context, first_token="once")


def sign_in(visitor: Visitor, name: str, password: str, **form):
    form = {"csrf": csrf_on(visitor.get("/sign-in").text), **form}
    return visitor.client.post("/sign-in", data={**form, "name": name, "password": password})


# ---------------------------------------------------------------------------------------------------- who may do what


def test_nobody_sees_anything_without_signing_in(app):
    for path in PAGES:
        answer = Visitor(app).get(path)
        assert answer.status_code == 303, path
        assert answer.headers["location"].startswith("/sign-in?next="), path
        assert "ACC0" not in answer.text


def test_the_api_asks_for_a_token_and_a_session_is_none(app):
    anna = signed_in(app, "Anna", "administrator")
    for path in ("/api/worklist", "/api/studies/2.25.1"):
        assert Visitor(app).get(path).status_code == 401
        assert anna.get(path).status_code == 401
        assert Visitor(app).get(path, authorization="Bearer guessed").status_code == 401


def test_a_viewer_changes_nothing_and_only_an_administrator_sees_the_system(app, context):
    viewer, reader, administrator = (signed_in(app, role, role) for role in ("viewer", "reader", "administrator"))
    for action in READERS:
        assert viewer.post(f"/studies/1/{action}", reason="why", rest="absent").status_code == 403, action
    assert viewer.get("/studies/1").status_code == 200
    assert 'formaction="/studies/1/claim"' not in viewer.get("/").text
    assert [who.get("/system").status_code for who in (viewer, reader, administrator)] == [403, 403, 200]
    assert [who.post("/system/requeue").status_code for who in (viewer, reader)] == [403, 403]
    with read_scope(context.engine) as session:
        assert session.scalars(select(ReadingClaim)).all() == []


def test_a_form_without_the_session_s_own_token_is_refused_and_no_link_changes_anything(app):
    anna = signed_in(app, "Anna", "administrator")
    for action in (*(f"/studies/1/{name}" for name in READERS), "/system/requeue", "/sign-out"):
        for token in ({}, {"csrf": ""}, {"csrf": "guessed"}, {"csrf": csrf_of("another session")}):
            assert anna.client.post(action, data={"rest": "absent", **token}).status_code == 403, action
        assert anna.get(action).status_code == 405, action


def test_a_session_that_has_ended_or_whose_user_is_disabled_is_none(app, context):
    anna, ben = signed_in(app, "Anna", "reader"), signed_in(app, "Ben", "reader")
    with session_scope(context.engine) as session:
        ended = database_now(session) - timedelta(seconds=1)
        session.execute(
            update(WebSession).where(WebSession.token_digest == digest_of(anna.token or "")).values(expires_at=ended)
        )
        users.by_name(session, "Ben").password_hash = password_hash(PASSWORD)
        users.disable(session, users.by_name(session, "Ben"), by="test")
    assert anna.get("/").status_code == ben.get("/").status_code == 303
    assert sign_in(Visitor(app), "Ben", PASSWORD).status_code == 403, "nor does the right password open another"
    assert anna.get("/", hx_request="true").status_code == 401, "an open page is told, and not sent elsewhere"


def test_a_role_that_is_taken_away_ends_what_it_allowed_at_once(app, context):
    anna = signed_in(app, "Anna", "administrator")
    assert anna.get("/system").status_code == 200
    may_claim: dict[Role, int] = {"viewer": 403, "reader": 303}
    for role, status in may_claim.items():
        with session_scope(context.engine) as session:
            users.set_role(session, users.by_name(session, "Anna"), role, by="test")
        assert anna.get("/system").status_code == 403
        assert anna.post("/studies/1/claim").status_code == status, role


# ------------------------------------------------------------------------------------------------------- signing in


def test_a_password_opens_a_session_that_signing_out_ends(app, context):
    add_user(context, "Anna", "reader", password_hash=password_hash(PASSWORD))
    anna = Visitor(app)
    answer = sign_in(anna, "anna", PASSWORD, next="/studies/1")
    assert (answer.status_code, answer.headers["location"]) == (303, "/studies/1")
    cookie = next(line for line in answer.headers.get_list("set-cookie") if line.startswith(SESSION))
    assert {"HttpOnly", "SameSite=lax"} <= {part.strip() for part in cookie.split(";")}
    assert anna.get("/").status_code == 200
    anna.token = anna.client.cookies[SESSION]
    with read_scope(context.engine) as session:
        assert anna.token not in str(session.scalars(select(WebSession.token_digest)).all()), "only its digest is kept"
    kept = anna.token
    assert anna.post("/sign-out").status_code == 303
    assert Visitor(app, token=kept).get("/").status_code == 303


def test_wrong_passwords_are_refused_alike_and_slowed_down(app, context, monkeypatch):
    checked: list[str | None] = []

    def check(password: str, kept: str | None) -> bool:
        checked.append(kept)
        return password == PASSWORD

    monkeypatch.setattr("worker.web.auth.is_password", check)
    add_user(context, "Anna", "reader", password_hash="kept")
    visitor = Visitor(app)
    answers = [sign_in(visitor, name, "wrong") for name in ("Anna", "Nobody")]
    assert {answer.status_code for answer in answers} == {403}
    assert checked == ["kept", None], "a name that nobody has costs the same check"
    for _ in range(TRIES - 1):
        sign_in(visitor, "Anna", "wrong")
    assert sign_in(visitor, "Anna", PASSWORD).status_code == 429, "also the right one waits"
    with session_scope(context.engine) as session:
        session.execute(update(LoginFailure).values(at=database_now(session) - timedelta(minutes=16)))
    assert sign_in(visitor, "Anna", PASSWORD).status_code == 303
    with read_scope(context.engine) as session:
        assert session.scalars(select(LoginFailure)).all() == []


def test_another_ipv6_address_of_the_same_network_starts_no_new_count(app, context, monkeypatch):
    monkeypatch.setattr("worker.web.auth.is_password", lambda *_: False)

    def tried_from(host: str) -> int:
        visitor = Visitor(app)
        visitor.client = TestClient(app, base_url=ADDRESS, client=(host, 50000))
        return sign_in(visitor, "Anna", "wrong").status_code

    assert [tried_from(f"2001:db8::{number:x}") for number in range(TRIES)] == [403] * TRIES
    assert tried_from("2001:db8::ffff") == 429
    assert tried_from("2001:db8:0:1::1") == tried_from("192.0.2.1") == 403, "another network"


FOREIGN = ["https://evil.example/", "//evil.example", "/\\evil.example", "javascript:alert(1)", "/\t/evil.example"]


def test_no_address_leads_to_a_foreign_page(app, context, monkeypatch):
    monkeypatch.setattr("worker.web.auth.is_password", lambda *_: True)
    add_user(context, "Anna", "reader", password_hash="kept")
    ben = signed_in(app, "Ben", "reader")
    for foreign in FOREIGN:
        assert sign_in(Visitor(app), "Anna", "any", next=foreign).headers["location"] == "/", foreign
        ben.post("/studies/1/unread")
        assert ben.post("/studies/1/read", back=foreign).headers["location"] == "/?read=1", foreign
        assert "evil.example" not in ben.get(f"/studies/1?back={quote(foreign)}").text


def test_the_first_user_is_made_once_by_the_address_that_serve_prints(app, context):
    visitor = Visitor(app)
    assert visitor.get("/first/guessed").status_code == 404
    form = {"csrf": csrf_on(visitor.get("/first/once").text), "name": "Dr. Anna"}
    assert visitor.client.post("/first/once", data={**form, "password": "short"}).status_code == 400
    assert visitor.client.post("/first/once", data={**form, "password": PASSWORD}).status_code == 303
    assert "administrator" in visitor.get("/").text
    assert visitor.get("/first/once").status_code == 404
    with read_scope(context.engine) as session:
        assert [user.name for user in users.everyone(session)] == ["Dr. Anna"]


def test_a_token_of_a_program_works_until_it_ends_or_is_revoked(app, context):
    add_user(context, "ris", "viewer")
    with session_scope(context.engine) as session:
        ris = users.by_name(session, "ris")
        api_tokens.issue(session, ris, name="list", digest=digest_of("secret"), days=1, by="test")
    program = Visitor(app)
    assert program.get("/api/worklist", authorization="Bearer secret").status_code == 200
    with session_scope(context.engine) as session:
        session.execute(update(ApiToken).values(expires_at=database_now(session)))
    assert program.get("/api/worklist", authorization="Bearer secret").status_code == 401
    with session_scope(context.engine) as session:
        session.execute(update(ApiToken).values(expires_at=None))
        api_tokens.revoke(session, users.by_name(session, "ris"), name="list", by="test")
    assert program.get("/api/worklist", authorization="Bearer secret").status_code == 401


# ------------------------------------------------------------------------------------------- hosts, headers, and text


def test_a_forged_host_is_refused(app):
    anna = signed_in(app, "Anna", "reader")
    for host in ("evil.example", "localhost.evil.example", "[::1]evil", ""):
        assert anna.get("/", host=host).status_code == 400, host


def test_another_host_is_served_when_it_is_named_and_only_over_tls(context):
    named = Context(context.settings.changed(web={"hosts": ("nightread.example",)}))
    app = create_app(named)
    anna = signed_in(app, "Anna", "reader")
    assert anna.get("/", host="nightread.example").status_code == 403, "a password would cross the network"
    anna.client.base_url = "https://nightread.example"
    anna.client.cookies.set(SESSION, anna.token, domain="nightread.example")
    answer = anna.get("/")
    assert answer.status_code == 200
    assert "strict-transport-security" in answer.headers
    assert all("Secure" in cookie for cookie in Visitor(app).client.get(
        "https://nightread.example/sign-in").headers.get_list("set-cookie"))  # fmt: skip


def test_every_answer_forbids_scripts_of_others_and_is_kept_nowhere(app):
    anna = signed_in(app, "Anna", "administrator")
    for path in ("/", "/studies/1", "/system", "/sign-in", "/nowhere", "/films/1.png", "/api/worklist"):
        headers = anna.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"], path
        assert "unsafe" not in headers["content-security-policy"], path
        assert headers["cache-control"] == "no-store", path
        assert headers["x-content-type-options"] == "nosniff", path
        assert headers["referrer-policy"] == "same-origin", path


def test_a_picture_is_kept_by_no_browser_and_tells_no_path(app, monkeypatch):
    for kind in ("film", "thumbnail", "heat"):
        monkeypatch.setattr(f"worker.web.images.Pictures.{kind}", lambda *_: b"a picture")
    anna, anonymous = signed_in(app, "Anna", "reader"), Visitor(app)
    for path in ("/films/1.png", "/films/1/thumbnail.png", "/films/1/heat/Pneumothorax.png"):
        answer = anna.get(path)
        assert (answer.status_code, answer.content) == (200, b"a picture"), path
        assert answer.headers["cache-control"] == "no-store", path
        assert not {"etag", "last-modified", "content-disposition", "set-cookie"} & set(answer.headers), path
        assert anonymous.get(path).status_code == 303, path


def test_no_page_holds_a_script_or_a_style_of_its_own(app):
    anna = signed_in(app, "Anna", "administrator")
    for path in ("/", "/studies/1", "/system", "/api"):
        page = anna.get(path).text
        assert re.findall(r"<script(?! src=\"/static/)", page) == [], path
        assert re.findall(r"<style|\sstyle=|\son\w+=|javascript:", page) == [], path
        assert re.findall(r"(?:src|href|action)=\"(?:https?:)?//", page) == [], path


def test_a_script_in_an_accession_number_or_a_reader_s_name_is_text(app, context):
    with session_scope(context.engine) as session:
        session.execute(update(Study).where(Study.id == 1).values(accession_number=SCRIPT))
    anna = signed_in(app, f"Anna {SCRIPT}", "administrator")
    assert anna.post("/studies/1/claim").status_code == 303
    assert anna.post("/studies/1/review", rest="absent").status_code == 303
    for path in ("/", "/studies/1", "/system", f"/?accession={SCRIPT}"):
        page = anna.get(path).text
        assert "alert(1)" in page, path
        assert SCRIPT not in page, path


def test_the_pages_hold_no_path_no_patient_key_and_no_secret(app, context):
    anna = signed_in(app, "Anna", "administrator")
    for path in ("/", "/studies/1", "/system"):
        page = anna.get(path).text
        assert "feedfacecafe" not in page, path
        assert "DOE^JANE" not in page, path
        assert context.blinding.secret not in page, path


def test_a_look_at_a_study_and_every_change_are_in_the_audit(app, context):
    anna = signed_in(app, "Anna", "reader")
    anna.get("/studies/2")
    for action, form in (("claim", {}), ("review", {"rest": "absent"}), ("read", {}), ("unread", {})):
        assert anna.post(f"/studies/2/{action}", **form).status_code == 303, action
    with read_scope(context.engine) as session:
        rows = session.scalars(select(Audit).where(Audit.actor == "Anna").order_by(Audit.id)).all()
    expected = [
        "study viewed",
        "study claimed",
        "study reviewed",
        "study read",
        "study released",
        "studies marked unread",
    ]
    assert [row.action for row in rows] == expected
    assert all(row.detail["study_ids"] == [2] for row in rows)


def test_a_study_and_a_heat_map_are_in_the_audit_however_they_were_reached(app, context):
    anna, ben = signed_in(app, "Anna", "reader"), signed_in(app, "Ben", "reader")
    ben.post("/studies/2/claim")
    for action in ("take-over", "claim", "read", "review"):
        assert "What adds to its urgency" in anna.post(f"/studies/2/{action}").text, action
    anna.get("/films/2/heat/Pneumothorax.png")
    with read_scope(context.engine) as session:
        rows = session.scalars(select(Audit).where(Audit.actor == "Anna").order_by(Audit.id)).all()
    assert [row.action for row in rows] == ["study viewed"] * 4 + ["heat map viewed"]
    assert all(row.detail["study_ids"] == [2] for row in rows)


def test_a_form_that_is_too_long_is_refused(app):
    anna = signed_in(app, "Anna", "reader")
    assert anna.post("/studies/1/take-over", reason="x" * 10_000).status_code == 400
    assert anna.post("/studies/1/review", **{f"verdict-{i}": "present" for i in range(200)}).status_code == 400


def test_a_visit_without_a_session_gets_a_cookie_for_the_form_alone(app):
    answer = Visitor(app).get("/sign-in")
    assert answer.headers["set-cookie"].startswith(VISIT)
