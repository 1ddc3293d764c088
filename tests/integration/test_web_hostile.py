"""Each of the site's routes: who has not signed in and a form from elsewhere are refused, and whatever an address or a
form holds, the answer is in words."""

import re
from collections.abc import Iterator

import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from tests.support.servers import fresh_database
from tests.support.web import ADDRESS, Visitor, add_night, add_token, signed_in
from worker.web.app import create_app
from worker.web.requests import csrf_of
from worker.web.worklist import LONGEST_NUMBER

# As they stand in an address or a form: percent-encoded.
HOSTILE = {
    "text and NUL": "2.25.1%00",
    "a huge number": "9" * 4400,  # int() takes no more than 4300 digits
    "a number beyond 64 bits": f"-{2**63 + 1}",
    "bad UTF-8, and half a pair of UTF-16": "%FF%ED%A0%80",
    "a line of headers, and a script": "%0D%0ASet-Cookie:%20planted=1%0D%0A%0D%0A%3Cscript%3Ealert(1)%3C%2Fscript%3E",
}
NUMBERS = ("page", "per_page", "read", "requeued", "film")
TEXTS = ("category", "finding", "flag", "stat", "overdue", "accession", "saved", "heat", "back", "next")
FORM = ("back", "name", "next", "password", "reason", "rest", "study_instance_uid", "verdict-Mass")
READS = {"GET", "HEAD"}
METHODS = {*READS, "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"}
KNOWN = {"token": "once", "finding": "Mass", "uid": "2.25.1"}


@pytest.fixture(scope="module")
def app(make_context, postgres_server_url) -> Iterator[Starlette]:
    """On a real PostgreSQL: it keeps no NUL, and fails where it is asked for one."""
    with fresh_database(postgres_server_url) as url:
        context = make_context(database_url=url, checkpoint=None)
        add_night(context)
        yield create_app(context, first_token="once")
        context.engine.dispose()


@pytest.fixture(scope="module")
def anna(app) -> Visitor:
    visitor = signed_in(app, "Anna", "administrator")
    add_token(app.state.site.context, "Anna")
    visitor.client.headers["Authorization"] = "Bearer t"
    return visitor


def routes(app: Starlette) -> list[Route]:
    """All but signing out, which reads nothing and would be the end of Anna's visit."""
    return [route for route in app.routes if isinstance(route, Route) and route.path != "/sign-out"]


def ask(anna: Visitor, route: Route, path: str, value: str):
    """The route's answer with this value in each field of the query, or of the form."""
    query = NUMBERS if len(value) > 1000 else (*NUMBERS, *TEXTS)  # no client sends an address of 64 KB
    fields = [f"{name}={value}" for name in (query if route.methods == READS else FORM)]
    if route.methods == READS:
        return anna.client.get(f"{path}?{'&'.join(fields)}")
    body = "&".join([*fields, f"csrf={csrf_of(anna.token or '')}"])
    return anna.client.post(path, content=body, headers={"Content-Type": "application/x-www-form-urlencoded"})


def path_of(route: Route) -> str:
    """An address of this route that there is."""
    return re.sub(r"{(\w+)(:\w+)?}", lambda name: KNOWN.get(name[1], "1"), route.path)


def test_no_route_but_the_doors_answers_whoever_has_not_signed_in(app):
    doors = {"/sign-in", "/first/{token}", "/alive"}
    for route in [route for route in app.routes if isinstance(route, Route) and route.path not in doors]:
        answer = Visitor(app).get(path_of(route)) if route.methods == READS else Visitor(app).post(path_of(route))
        to_the_door = (answer.status_code, answer.headers.get("location", "")[:14]) == (303, "/sign-in?next=")
        assert to_the_door or answer.status_code in (401, 403), route.path
        assert not re.search(r"ACC0|2\.25\.|Pneumothorax", answer.text), route.path


def test_no_form_is_taken_without_the_token_of_its_session(app, anna):
    targets = [route for route in app.routes if isinstance(route, Route) and route.methods == {"POST"}]
    assert len(targets) >= 11
    for route in targets:
        for token in ("", csrf_of("another session")):
            assert anna.client.post(path_of(route), data={"csrf": token}).status_code == 403, route.path


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE.keys())
def test_no_route_fails_whatever_its_address_or_its_form_holds(app, anna, value):
    for route in routes(app):
        for path in {path_of(route), re.sub(r"{\w+(:\w+)?}", value, route.path)}:
            answer = ask(anna, route, path, value)
            assert answer.status_code < 500, (route.path, path)
            assert "<script>alert" not in answer.text, (route.path, path)
            assert "planted" not in answer.cookies, (route.path, path)
            if answer.status_code in (400, 404):
                assert 'role="alert"' in answer.text or answer.json()["error"], (route.path, path)


def test_a_method_that_an_address_does_not_have_is_refused_and_head_tells_no_more_than_get(app, anna):
    known: dict[str, set[str]] = {}
    for route in routes(app):
        known.setdefault(path_of(route), set()).update(route.methods or ())
    for path, methods in known.items():
        for method in METHODS - methods:
            assert anna.client.request(method, path).status_code == 405, (method, path)
        if "HEAD" in methods:
            asked = [Visitor(app).client.request(method, path) for method in ("HEAD", "GET")]
            assert len({(answer.status_code, answer.headers.get("location")) for answer in asked}) == 1, path


def test_a_token_is_no_session_and_a_session_is_no_token(app, anna):
    cookie, bearer = Visitor(app, token="t"), Visitor(app)
    assert cookie.get("/").status_code == 303
    assert cookie.post("/studies/1/claim").status_code == 401
    bearer.client.headers["Authorization"] = "Bearer t"
    assert bearer.get("/").status_code == 303
    assert bearer.post("/studies/1/claim").status_code == 403
    assert Visitor(app).get("/api/worklist", authorization=f"Bearer {anna.token}").status_code == 401


def test_no_address_leads_out_of_a_folder(anna):
    assert anna.get("/static/nightread.css").status_code == 200
    for way in ("..%2Fapp.py", "%2e%2e/app.py", "..%5Capp.py", "%2Fetc%2Fpasswd", "nightread.css%00"):
        for folder in ("static", "films", "films/1", "films/1/heat", "studies", "system/runs"):
            assert anna.get(f"/{folder}/{way}").status_code in (400, 404), (folder, way)


def test_a_filter_that_no_accession_number_can_match_is_cut_and_finds_nothing(anna):
    answer = anna.get("/?accession=" + "A" * 20_000)
    assert answer.status_code == 200
    assert "No study matches the filter" in answer.text
    assert "A" * (LONGEST_NUMBER + 1) not in answer.text


def test_a_nul_is_said_and_a_number_that_no_row_has_is_nowhere(anna):
    for path in ("/?accession=%00", "/studies/1?back=%00", "/api/studies/%00"):
        answer = anna.get(path)
        assert answer.status_code == 400, path
        assert "NUL" in answer.text, path
    for path in ("/studies/-1", f"/studies/{2**63}", "/studies/" + "9" * 4400, "/films/1.5.png"):
        assert anna.get(path).status_code == 404, path
    assert anna.get("/?page=-3").status_code == 200


def test_a_body_that_is_no_form_is_refused(anna):
    odd = 'multipart/form-data; boundary=x; charset="undefined"'
    for kind in (odd, "application/json", "text/plain"):
        body = b'--x\r\nContent-Disposition: form-data; name="csrf"\r\n\r\n1\r\n--x--\r\n'
        answer = anna.client.post("/studies/1/claim", content=body, headers={"Content-Type": kind})
        assert answer.status_code == 415, kind
        assert 'role="alert"' in answer.text, kind
    for target in ("/?" + "&".join(f"a{n}=1" for n in range(5000)), "/" + "a/" * 3000, f"/{ADDRESS}"):
        assert anna.get(target).status_code < 500
