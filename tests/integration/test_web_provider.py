"""Signing in by an OpenID provider: who it vouches for, with which role, and what is refused."""

from collections.abc import Iterator

import pytest
from httpx import Client, Response

from db import users
from db.session import read_scope, session_scope
from tests.support.provider import Provider
from tests.support.web import Visitor, add_user
from worker.context import Context
from worker.web.app import create_app
from worker.web.oidc import role_in

ANNA = {"sub": "7", "preferred_username": "anna", "realm_access": {"roles": ["staff", "reader"]}}


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture
def app(make_context, provider):
    oidc = {"oidc_issuer": provider.issuer, "oidc_client_id": "nightread", "oidc_client_secret": "secret"}
    return create_app(make_context(checkpoint=None, web={**oidc, "oidc_role_claim": "realm_access.roles"}))


def test_the_provider_s_answer_may_come_to_another_process(app, provider):
    provider.claims, provider.wrong = ANNA, {}
    visitor = Visitor(app)
    away = visitor.get("/sign-in/provider")
    with Client() as client:
        back = client.get(away.headers["location"])
    other = Visitor(create_app(app.state.site.context))
    other.client.cookies = visitor.client.cookies
    assert other.client.get(back.headers["location"]).status_code == 303


def come(app, provider: Provider, claims: dict, *, next_page: str = "/", **wrong) -> tuple[Visitor, Response]:
    """Somebody signs in at the provider; the visitor, and what the answer was."""
    provider.claims, provider.wrong = claims, wrong
    visitor = Visitor(app)
    away = visitor.get(f"/sign-in/provider?next={next_page}")
    assert away.status_code == 302
    assert away.headers["location"].startswith(f"{provider.issuer}/authorize?")
    assert "code_challenge_method=S256" in away.headers["location"]
    with Client() as client:
        back = client.get(away.headers["location"])
    return visitor, visitor.client.get(back.headers["location"])


def test_whom_the_provider_vouches_for_is_let_in_with_the_role_of_the_claim(app, provider):
    visitor, answer = come(app, provider, ANNA, next_page="/api")
    assert (answer.status_code, answer.headers["location"]) == (303, "/api")
    assert "anna, reader" in visitor.get("/").text
    promoted = {**ANNA, "realm_access": {"roles": ["administrator"]}}
    visitor, _ = come(app, provider, promoted, next_page="https://evil.example/")
    assert visitor.get("/system").status_code == 200
    with read_scope(app.state.site.context.engine) as session:
        assert [(user.name, user.role, user.password_hash) for user in users.everyone(session)] == [
            ("anna", "administrator", None)
        ]


def test_without_a_role_or_with_another_s_name_or_after_being_disabled_nobody_is_let_in(app, provider):
    context: Context = app.state.site.context
    assert come(app, provider, {**ANNA, "realm_access": {"roles": ["staff"]}})[1].status_code == 403
    add_user(context, "Anna", "administrator", password_hash="kept")
    _, answer = come(app, provider, ANNA)
    assert (answer.status_code, "already" in answer.text) == (403, True), "a provider's anna is not this site's Anna"
    assert come(app, provider, {**ANNA, "preferred_username": "anna.berg"})[1].status_code == 303
    with session_scope(context.engine) as session:
        users.disable(session, users.by_name(session, "anna.berg"), by="test")
    assert come(app, provider, {**ANNA, "preferred_username": "anna.berg"})[1].status_code == 403


def test_an_answer_that_is_forged_or_belongs_to_another_browser_is_refused(app, provider):
    for wrong in ({"aud": "another"}, {"iss": "https://evil.example"}, {"nonce": "another"}, {"exp": 1}):
        assert come(app, provider, ANNA, **wrong)[1].status_code == 403, wrong
    assert Visitor(app).get("/sign-in/provider/answer?code=1&state=guessed").status_code == 403
    assert Visitor(app).get("/sign-in/provider/answer?error=access_denied").status_code == 403


def test_the_state_of_a_sign_in_never_travels_in_the_clear_where_the_page_has_tls(app):
    def cookie(address: str) -> str:
        kept: str = Visitor(app).client.get(f"{address}/sign-in/provider").headers["set-cookie"]
        return kept.lower()

    assert "; secure" in cookie("https://localhost")
    assert "; secure" not in cookie("http://localhost"), "a browser would drop it"


def test_a_provider_whose_words_nobody_understands_is_refused_in_a_sentence(make_context, provider):
    oidc = {"oidc_issuer": f"{provider.issuer}/odd", "oidc_client_id": "nightread", "oidc_client_secret": "secret"}
    answer = Visitor(create_app(make_context(checkpoint=None, web=oidc))).get("/sign-in/provider")
    assert (answer.status_code, "did not sign you in" in answer.text) == (403, True)


def test_a_provider_that_does_not_answer_is_said_and_passwords_still_work(make_context):
    oidc = {"oidc_issuer": "http://127.0.0.1:9", "oidc_client_id": "nightread", "oidc_client_secret": "secret"}
    visitor = Visitor(create_app(make_context(checkpoint=None, web=oidc)))
    answer = visitor.get("/sign-in/provider")
    assert (answer.status_code, "does not answer" in answer.text) == (503, True)
    assert "hospital’s account" in visitor.get("/sign-in").text


@pytest.mark.parametrize(
    ("claims", "path", "role"),
    [
        ({"roles": "reader"}, "roles", "reader"),
        ({"roles": ["viewer", "administrator", "reader"]}, "roles", "administrator"),
        ({"roles": ["Reader", "readers"]}, "roles", None),
        ({"a": {"b": ["viewer"]}}, "a.b", "viewer"),
        ({"a": "viewer"}, "a.b", None),
        ({"roles": {"reader": True}}, "roles", None),
        ({}, "roles", None),
    ],
)
def test_a_role_is_found_in_its_claim(claims, path, role):
    assert role_in(claims, path) == role
