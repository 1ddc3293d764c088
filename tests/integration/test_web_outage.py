"""PostgreSQL goes away under the web page: each page says so, and works again once it is back."""

import time

import pytest

from tests.support.crew import wait_until
from tests.support.web import add_night, signed_in
from worker.web.app import create_app

pytestmark = pytest.mark.xdist_group("servers")

BACK_SECONDS = 30


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
    own_postgres.start()
    began = time.monotonic()
    wait_until(lambda: anna.get("/").status_code == 200, seconds=BACK_SECONDS)
    assert time.monotonic() - began < BACK_SECONDS
    assert anna.post("/studies/1/claim").status_code == 303
    context.engine.dispose()
