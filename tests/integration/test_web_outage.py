"""PostgreSQL goes away under the web page: each page says so, keeps what was entered,
and works again once it is back."""

import re
import time

import pytest
from sqlalchemy import select

from db.models import Review
from db.session import read_scope
from tests.support.crew import wait_until
from tests.support.web import Visitor, add_night, signed_in
from worker.web.app import create_app
from worker.web.requests import VISIT, csrf_of

pytestmark = pytest.mark.xdist_group("servers")

BACK_SECONDS = 30


def fields_of(page: str) -> dict[str, str]:
    """What the hidden fields of a page hold."""
    return dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', page))


def test_pages_say_that_the_database_is_away_and_are_back_soon_after_it(make_context, own_postgres):
    context = make_context(database_url=own_postgres.url, checkpoint=None)
    add_night(context)
    app = create_app(context)
    anna = signed_in(app, "Anna", "administrator")
    assert anna.get("/").status_code == 200
    own_postgres.stop()
    for path in ("/", "/studies/1", "/films/1.png", "/system"):
        answer = anna.get(path)
        assert answer.status_code == 503, path
        assert "The database does not answer" in answer.text
        assert answer.headers["refresh"] == "10", "the page tries again by itself, without a script too"
    assert anna.get("/", hx_request="true").status_code == 503, "an open list shows its banner"
    assert anna.post("/studies/1/claim").status_code == 503
    assert anna.get("/api/worklist", authorization="Bearer t").headers["retry-after"] == "10"
    marks = {"verdict-Mass": "present", "verdict-Effusion": "not_assessed", "back": "/?category=A"}
    unsaved = anna.post("/studies/1/review", **marks)
    assert unsaved.status_code == 503
    assert "Not saved" in unsaved.text
    assert fields_of(unsaved.text) == {"csrf": csrf_of(anna.token or ""), **marks}, "the page holds the form again"
    foreign = anna.client.post("/studies/1/review", data={"csrf": "guessed", **marks})
    assert fields_of(foreign.text) == {}, "but only one that came from this site"
    secret = Visitor(app)
    secret.client.cookies.set(VISIT, "a visit")
    form = {"csrf": csrf_of("a visit"), "name": "Anna", "password": "never shown"}
    assert "never shown" not in secret.client.post("/sign-in", data=form).text
    own_postgres.start()
    began = time.monotonic()
    wait_until(lambda: anna.get("/").status_code == 200, seconds=BACK_SECONDS)
    assert time.monotonic() - began < BACK_SECONDS
    assert anna.post("/studies/1/claim").status_code == 303
    assert anna.client.post("/studies/1/review", data=fields_of(unsaved.text)).status_code == 303
    with read_scope(context.engine) as session:
        kept = {row.finding: row.verdict for row in session.scalars(select(Review))}
    assert kept == {"Mass": "present", "Effusion": "not_assessed"}
    context.engine.dispose()
