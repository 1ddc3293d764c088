"""The web page in headless Chromium: accessible, read by keys alone, calm while studies arrive, and the same without
JavaScript. playwright-core and axe-core come from npm, by tests/support/browser/package-lock.json."""

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from platformdirs import user_cache_path
from sqlalchemy import func, select, update

from db import registry, users, web_sessions
from db.models import Instance, Review, StudyPriority
from db.session import read_scope, session_scope
from tests.support import debian
from tests.support.contexts import MakeContext
from tests.support.dicom_files import make_film, texture
from tests.support.night_rows import add_studies, add_unscored, open_run
from training.findings import FINDINGS
from worker.context import Context
from worker.intake.receive import receive
from worker.web.app import create_app
from worker.web.passwords import digest_of

BROWSER = Path(__file__).parents[1] / "support" / "browser"
READ_AT_NIGHT, REFRESHES = 30, 100
REFRESH_SECONDS = 60.5  # longer than a visit of the other tests; not whole, as htmx reads a point in its own way
ARRIVALS = 40  # above the row that has the focus: with more of them it would leave the page
TOKEN = "of-a-browser"
QUARANTINED = 90  # the number of a study


@pytest.fixture(scope="session")
def modules() -> Path:
    """The folder of the npm packages that drive Chromium; it is kept from run to run."""
    debian.need("chromium", packages="chromium")
    debian.need("node", "npm", packages="nodejs npm")
    lock = (BROWSER / "package-lock.json").read_bytes()
    folder = user_cache_path("nightread-tests") / f"browser-{digest_of(lock.decode())[:12]}"
    if not (folder / "node_modules" / "axe-core").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(BROWSER / name, folder)
        subprocess.run(
            ["npm", "ci", "--no-audit", "--no-fund"], cwd=folder, check=True, capture_output=True, timeout=300
        )
    return folder


@pytest.fixture(scope="module")
def context(make_context: MakeContext, tmp_path_factory: pytest.TempPathFactory) -> Context:
    """A scored film, forty scored studies whose films nobody has, and one in quarantine."""
    context = make_context(web={"refresh_seconds": REFRESH_SECONDS})
    folder = tmp_path_factory.mktemp("films")
    make_film(folder / "film.dcm", pixels=texture(seed=1), bits=12)
    receive(context, [folder])
    score(context)
    arrive(context, first=100, count=40)
    with session_scope(context.engine) as session:
        add_unscored(session, QUARANTINED, state="quarantined", reason="decoder_crashed")
    with session_scope(context.engine) as session:
        anna = users.add(session, name="Anna", role="administrator", by="test")
        web_sessions.begin(session, anna, digest=digest_of(TOKEN), hours=1)
    return context


def score(context: Context) -> None:
    from worker.scoring.pipeline import score_waiting  # torch, which skipping does without
    from worker.scoring.scorer import open_scorer

    with open_scorer(context) as scorer:
        score_waiting(scorer, kind="score")


def arrive(context: Context, *, first: int, count: int) -> None:
    """Scored studies, each more urgent than those before, whose films have no picture."""
    with session_scope(context.engine) as session:
        assert registry.champion(session) is not None
        found = [{"Pneumothorax": min(0.99, 0.3 + 0.0001 * (first + number))} for number in range(count)]
        add_studies(session, open_run(session), found, first=first)
        session.execute(update(Instance).where(Instance.id >= first).values(pixel_digest=None))


@pytest.fixture(scope="module")
def address(context: Context) -> Iterator[str]:
    """The page, served on a free port of this machine."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(context, first_token="once"), log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()


def visit(modules: Path, address: str, *visits: str, **asked: Any) -> dict[str, Any]:
    """What Chromium saw; no visit may end early, log an error or leave this site."""
    asked |= {"modules": str(modules), "address": address, "token": TOKEN, "visits": visits}
    command = ["node", str(BROWSER / "visits.mjs"), json.dumps(asked | {"chromium": shutil.which("chromium")})]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=290, env=os.environ | {"LC_ALL": "C"})
    assert ended.returncode == 0, ended.stderr[-3000:]
    seen: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    assert seen["errors"] == [], "no script, style or picture was refused or failed"
    assert seen["foreign"] == [], "nothing was asked of another site"
    pages: dict[str, Any] = seen["pages"]
    assert not [page for page in pages.values() if "failed" in page], pages
    return pages


def test_no_page_has_a_serious_fault_in_either_theme_on_a_wide_or_a_narrow_screen(modules, address):
    of_a_study = ["/studies/1", "/studies/101", f"/studies/{QUARANTINED}"]
    paths = ["/", *of_a_study, "/system", "/api", "/nothing-here", "/first/once", "/sign-in"]
    seen = visit(modules, address, "accessibility", "film", paths=paths, film="/studies/1")
    assert seen["accessibility"] == []
    widths, style = seen["film"]["widths"], seen["film"]["style"]
    assert len(widths) >= 1
    assert min(widths) > 100, "the film and its heat map are there"
    assert "scale(3)" in style
    assert "brightness(150%)" in style


def test_an_open_list_and_an_open_study_ask_as_often_as_they_should_and_no_more(modules, address):
    seen = visit(modules, address, "pace", refresh=REFRESH_SECONDS)["pace"]
    assert not seen.pop("stale"), "a list that has its answers is up to date"
    assert seen == {"list": [0, 1], "study": [0, 1], "claim": [0, 1]}, "requests before the time, and when it has come"


def test_refreshes_with_arrivals_keep_focus_text_and_place_and_an_outage_is_said(modules, address, context):
    over = threading.Event()

    def arrivals() -> None:
        for number in range(1000, 1000 + ARRIVALS):
            arrive(context, first=number, count=1)
            if over.wait(0.5):
                break

    thread = threading.Thread(target=arrivals)
    thread.start()
    try:
        seen = visit(modules, address, "refreshes", "away", refreshes=REFRESHES)
    finally:
        over.set()
        thread.join()
    assert seen["refreshes"]["lost"] == []
    assert seen["refreshes"]["marked"] > 0, "what arrived is marked"
    assert seen["away"]["banner"].startswith("Not up to date since ")


def test_a_night_is_read_and_reviewed_by_keys_alone_and_without_a_script_by_clicks(modules, address, context):
    def counts() -> tuple[int, int]:
        with read_scope(context.engine) as session:
            read = session.scalar(select(func.count()).where(StudyPriority.read_by == "Anna"))
            return int(read or 0), int(session.scalar(select(func.count(Review.id))) or 0)

    slips = visit(modules, address, "slips")["slips"]
    assert not slips["held"], "a key that is held down marks no study as read"
    assert slips["chosen"] == 1, "nor does a key while no study has the focus: it goes to the first"
    assert slips["away"].startswith("Not saved: the service does not answer.")
    assert (slips["asks"], slips["marked"], slips["saved"]) == (["beforeunload"], 1, "Your review is saved.")
    assert counts() == (0, 1)
    seen = visit(modules, address, "night", studies=READ_AT_NIGHT)
    assert counts() == (READ_AT_NIGHT - 1, READ_AT_NIGHT * len(FINDINGS)), "the last one was undone"
    assert "/studies/" in seen["night"]["undone"]
    plain = visit(modules, address, "plain")["plain"]
    assert plain["claimed"].startswith("You are reading this study")
    assert plain["saved"] == "Your review is saved."
    assert "is marked as read" in plain["read"]
    assert counts()[0] == READ_AT_NIGHT - 1
