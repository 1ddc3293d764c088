"""The commands, as a person types them."""

import csv
import io
import json
import logging
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import typer
from pydicom.uid import SecondaryCaptureImageStorage, generate_uid
from sqlalchemy import Engine, text, update
from typer.testing import CliRunner, Result

from db import schema
from db.models import Study
from db.session import make_engine, session_scope
from tests.support.contexts import bring_schema
from tests.support.dicom_files import make_film, texture
from tests.support.servers import free_port
from tests.support.untrained import save_unsound
from worker.cli import app as cli
from worker.cli.main import main as run_main
from worker.context import Context
from worker.settings import Settings
from worker.terminal.console import print_json

# DESIGN's contract, and what later pieces added.
COMMANDS = {
    "beat", "db", "demo", "doctor", "drift", "enqueue", "explain", "models", "policy", "prune", "read", "report",
    "requeue", "rescore", "review", "runs", "score", "simulate", "status", "train", "unread", "worker", "worklist",
}  # fmt: skip


@pytest.fixture(autouse=True)
def environment(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("database_url", "checkpoint", "state_folder", "decoders", "batch_size"):
        monkeypatch.setenv(f"NIGHTREAD_{name.upper()}", str(getattr(settings, name)))
    monkeypatch.delenv("NIGHTREAD_BROKER_URL", raising=False)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr("os.umask", lambda _mask: 0)  # the command's is for its whole process, which here is pytest's
    bring_schema(settings.database_url)


@pytest.fixture
def seeded(settings: Settings) -> None:
    """The database of `environment`, with its checkpoint and policy."""
    Context(settings).seed()


def nightread(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of the whole command, with its handling of errors."""
    monkeypatch.setattr("sys.argv", ["nightread", *arguments])
    with pytest.raises(SystemExit) as end:
        run_main()
    return int(end.value.code or 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A PA film, a lateral and a film that is cut short, in three studies."""
    films = tmp_path / "films"
    films.mkdir()
    make_film(films / "pa.dcm", AccessionNumber="PA1")
    make_film(films / "lateral.dcm", view_position="LL")
    make_film(films / "cut.dcm", PixelData=b"\0\0")
    return films


def test_every_command_of_the_contract_is_there():
    assert set(typer.main.get_group(cli.app).commands) >= COMMANDS


def test_score_ends_with_the_totals_and_says_by_its_exit_code_that_a_study_was_quarantined(folder):
    result = nightread("score", folder)
    assert result.exit_code == 1, result.output
    assert "3 files: 3 new instances, 0 known, 0 rejected." in result.output
    assert "lateral view" in result.output


def test_a_folder_that_is_named_twice_is_counted_once(folder):
    assert "3 files: 3 new instances, 0 known" in nightread("score", folder, folder / "pa.dcm", folder).output


def test_score_of_a_good_film_ends_with_0(tmp_path):
    make_film(tmp_path / "a.dcm")
    assert nightread("score", tmp_path).exit_code == 0


def test_status_as_json_holds_the_sums(folder):
    nightread("score", folder)
    totals = json.loads(nightread("status", "--json").stdout)
    counts = [totals[name] for name in ("received", "scored", "skipped", "quarantined", "waiting")]
    assert counts == [3, 1, 1, 1, 0]
    assert totals["balance"] is True


@pytest.fixture
def database(settings: Settings) -> Engine:
    return make_engine(settings.database_url)


def test_recount_mends_totals_that_were_kept_wrong(folder, database):
    nightread("score", folder)
    assert "counted anew: the totals were right" in nightread("status", "--recount").stderr
    with database.begin() as connection:
        connection.execute(text("UPDATE total_change SET change = change + 5 WHERE counted = 'study'"))
    assert json.loads(nightread("status", "--json").stdout)["received"] > 3
    result = nightread("status", "--recount", "--json")
    assert result.exit_code == 0
    assert "had been kept wrong, and are mended" in result.stderr
    assert json.loads(result.stdout)["received"] == 3


def test_recount_ends_with_1_where_a_study_contradicts_its_films(tmp_path, monkeypatch, capsys, database):
    make_film(tmp_path / "a.dcm")
    nightread("score", tmp_path)
    with database.begin() as connection:
        connection.execute(text("UPDATE instance SET state = 'skipped', reason = 'lateral_view'"))
    assert main(monkeypatch, "status", "--recount") == 1
    assert "the state of 1 study contradicts its films" in capsys.readouterr().err


def test_status_tells_of_what_was_skipped_under_other_settings(folder, monkeypatch):
    nightread("score", folder)
    assert "redecide" not in nightread("status").stdout
    monkeypatch.setenv("NIGHTREAD_MODALITIES", "CR,DX,DR,OT")
    assert json.loads(nightread("status", "--json").stdout)["skipped_under_other_settings"] == 1
    hint = "1 instance was skipped under other settings: `nightread redecide` decides again"
    assert hint in nightread("status").stdout


def test_status_lists_the_files_that_became_no_instance(folder):
    bad = folder / "bad[red]\x1b[2J.dcm"
    make_film(bad, StudyInstanceUID=None)
    nightread("score", folder)
    (file,) = json.loads(nightread("status", "--rejected", "--json").stdout)
    assert (file["path"], file["reason"]) == (str(bad), "study_uid_missing")
    assert "\x1b" not in nightread("status", "--rejected").stdout


def test_the_worklist_comes_as_table_json_and_csv(folder):
    nightread("score", folder)
    table = nightread("worklist").stdout
    assert "PA1" in table
    rows = json.loads(nightread("worklist", "--json").stdout)
    assert [row["priority_rank"] for row in rows] == [1, 2, 3]
    from_csv = list(csv.DictReader(io.StringIO(nightread("worklist", "--csv", "--limit", "2").stdout)))
    assert [row["study_instance_uid"] for row in from_csv] == [row["study_instance_uid"] for row in rows[:2]]


@pytest.mark.parametrize("options", [(), ("--json",), ("--csv",)])
def test_a_terminal_without_a_senders_letters_shows_the_list_all_the_same(monkeypatch, tmp_path, options):
    make_film(tmp_path / "a.dcm", AccessionNumber="Ω1", SpecificCharacterSet="ISO_IR 192")
    nightread("score", tmp_path)
    output = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr("sys.stdout", output)
    assert main(monkeypatch, "worklist", *options) == 0
    output.flush()
    assert b"1" in output.buffer.getvalue()


LISTINGS = (
    "status", "status --rejected", "status --quarantined", "status --skipped", "worklist", "runs", "models list",
    "policy show", "users list", "deliver --list",
)  # fmt: skip


@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize("words", LISTINGS)
def test_every_listing_gives_json_and_says_something_when_it_is_empty(words):
    json.loads(nightread(*words.split(), "--json").stdout)
    assert nightread(*words.split()).output.strip()


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_asked_for_by_two_names(flag):
    assert nightread("worklist", flag).stdout.startswith("Usage:")


def test_json_rows_are_written_as_they_come(capsys):
    printed = []

    def rows() -> Iterator[int]:
        for number in range(3):
            printed.append(capsys.readouterr().out)
            yield number

    print_json(rows())
    assert [text.strip("[],\n ") for text in [*printed, capsys.readouterr().out]] == ["", "0", "1", "2"]


def test_a_study_whose_accession_number_names_another_one_too_is_listed_by_its_uid(tmp_path):
    films = [make_film(tmp_path / f"{name}.dcm", AccessionNumber="SHARED") for name in ("a", "b")]
    nightread("score", tmp_path)
    (row,) = nightread("worklist", "--limit", "1").stdout.splitlines()[1:]
    study = row.split("\t")[7]
    assert study in [film.StudyInstanceUID for film in films]
    assert nightread("explain", study).exit_code == 0


def test_an_empty_worklist_is_a_table_too(tmp_path):
    assert nightread("worklist").exit_code == 0
    assert json.loads(nightread("worklist", "--json").stdout) == []
    header = nightread("worklist", "--csv").stdout
    make_film(tmp_path / "a.dcm")
    nightread("score", tmp_path)
    assert nightread("worklist", "--csv").stdout.splitlines()[0] == header.strip()


def test_explain_a_file_says_why_it_is_not_scored(folder):
    found = json.loads(nightread("explain", folder / "lateral.dcm", "--json").stdout)
    assert ["reason", "lateral_view"] in found["facts"]
    assert ["evidence", "ViewPosition=LL"] in found["facts"]


def test_explain_a_study_shows_its_rank_and_what_adds_to_its_urgency(tmp_path):
    film = make_film(tmp_path / "a.dcm")
    nightread("score", tmp_path)
    for uid in (film.StudyInstanceUID, film.SOPInstanceUID):
        found = json.loads(nightread("explain", uid, "--json").stdout)
        assert ["rank", "1"] in found["facts"]
        assert "What adds to its urgency" in [table[0] for table in found["tables"]]


def test_explain_takes_an_accession_number_of_one_study(tmp_path):
    for number, accession in enumerate(("N1", "N2", "N2")):
        make_film(tmp_path / f"{number}.dcm", AccessionNumber=accession, pixels=texture(seed=number), bits=12)
    nightread("score", tmp_path)
    assert any(name == "has waited" for name, _ in json.loads(nightread("explain", "N1", "--json").stdout)["facts"])
    assert nightread("explain", "N2").exit_code == 2


def test_explain_says_why_a_study_that_was_partly_scored_stands_higher(tmp_path):
    film = make_film(tmp_path / "a.dcm", AccessionNumber="N1")
    make_film(tmp_path / "b.dcm", StudyInstanceUID=film.StudyInstanceUID, PixelData=b"\0\0", pixels=texture(seed=1))
    nightread("score", tmp_path)
    facts = dict(json.loads(nightread("explain", "N1", "--json").stdout)["facts"])
    assert facts["flag"] == "partly_scored"
    assert "could not be read" in facts["category"]
    assert facts["what was seen"].startswith("category ")


@pytest.mark.parametrize(
    "words",
    [
        ("report", "--run", "9" * 20),
        ("policy", "capacity", "--finding", "Foo", "--weeks", "4"),
        ("policy", "capacity", "--weeks", "1e12"),
        ("policy", "show", "--version", "9" * 20),
        ("policy", "activate", "9" * 20),
        ("simulate", "--history", "1000000"),
    ],
)
@pytest.mark.usefixtures("seeded")
def test_an_odd_parameter_is_refused_in_one_line(monkeypatch, capsys, words):
    assert main(monkeypatch, *words) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    ['{"reading_minutes": 5}', '{"readers": 1.5}', '{"readers": 2.0}', '{"readers": Infinity}', '{"stat_share": 7}',
     '{"stat_reading_factor": -1}', '{"stat_reading_factor": NaN}', '{"abnormal_reading_factor": -3}'],
)  # fmt: skip
@pytest.mark.usefixtures("seeded")
def test_a_department_that_cannot_be_is_refused(tmp_path, monkeypatch, capsys, text):
    # With cases, since without them (the untrained checkpoint has no areas) every department is refused.
    department, cases = tmp_path / "department.json", tmp_path / "cases.json"
    department.write_text(text)
    cases.write_text('{"Pneumothorax": {"prevalence": 0.1, "auc": 0.9}}')
    ask = ("simulate", "--department", str(department), "--cases", str(cases), "--days", "1")
    assert main(monkeypatch, *ask) == 2
    output = capsys.readouterr().err
    assert "Traceback" not in output
    assert any(field in output for field in ("reading", "readers", "stat_share"))


@pytest.mark.usefixtures("seeded")
def test_a_picture_of_no_known_kind_is_refused(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    (tmp_path / "cases.json").write_text('{"Pneumothorax": {"prevalence": 0.1, "auc": 0.9}}')
    ask = ("simulate", "--cases", str(tmp_path / "cases.json"), "--days", "1", "--seeds", "1")
    assert main(monkeypatch, *ask, "--plot", str(tmp_path / "x.xyz")) == 2
    assert ".png, .svg or .pdf" in capsys.readouterr().err


def test_what_a_sender_wrote_is_printed_as_it_is(tmp_path):
    make_film(tmp_path / "a.dcm", AccessionNumber="A[/]1[b]")
    nightread("score", tmp_path)
    listed = nightread("worklist")
    assert listed.exit_code == 0
    assert "A[/]1[b]" in listed.output
    assert nightread("policy", "edit", "--max-wait-minutes", "700", "--note", "see [/ticket]").exit_code == 0
    assert "see [/ticket]" in nightread("policy", "show", "--all").output


def test_explain_something_unknown_is_wrong_usage():
    assert nightread("explain", generate_uid()).exit_code == 2


def test_requeue_lets_the_quarantined_try_again(folder):
    nightread("score", folder)
    assert "1 study waits again" in nightread("requeue").output
    assert json.loads(nightread("status", "--json").stdout)["waiting"] == 1


def test_a_path_that_does_not_exist_is_wrong_usage_and_registers_nothing(tmp_path):
    assert nightread("score", tmp_path / "nowhere").exit_code == 2
    assert json.loads(nightread("status", "--json").stdout)["received"] == 0


def test_a_wrong_setting_is_named(monkeypatch, capsys):
    monkeypatch.setenv("NIGHTREAD_BATCH_SIZE", "many")
    assert main(monkeypatch, "status") == 2
    assert "NIGHTREAD_BATCH_SIZE" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["status", "worklist", "doctor", "beat", "report"])
def test_a_setting_that_does_not_exist_stops_every_command_in_one_line(monkeypatch, capsys, command):
    monkeypatch.setenv("NIGHTREAD_BATCHSIZE", "8")
    assert main(monkeypatch, command) == 2
    printed = capsys.readouterr()
    if command == "doctor":  # shows it as what it is: a check that failed
        assert "NIGHTREAD_BATCH_SIZE" in " ".join(printed.out.split())
    else:
        assert printed.err.splitlines() == [
            "nightread: a setting is wrong: NIGHTREAD_BATCHSIZE: no such setting; did you mean NIGHTREAD_BATCH_SIZE?"
        ]


def test_doctor_shows_wrong_settings_as_a_failed_check(monkeypatch):
    monkeypatch.setenv("NIGHTREAD_TIME_ZONE", "Mars")
    result = nightread("doctor", "--json")
    (check,) = json.loads(result.stdout)
    assert (result.exit_code, check["name"], check["ok"]) == (2, "settings", False)
    assert "NIGHTREAD_TIME_ZONE" in check["text"]


def test_a_missing_checkpoint_is_wrong_usage(monkeypatch, capsys, folder):
    monkeypatch.setenv("NIGHTREAD_CHECKPOINT", "/nowhere/x.safetensors")
    assert main(monkeypatch, "score", str(folder)) == 2
    assert "x.safetensors" in capsys.readouterr().err


def test_enqueue_without_a_broker_says_what_to_do(monkeypatch, capsys, folder):
    assert main(monkeypatch, "enqueue", str(folder)) == 3
    assert "nightread score" in capsys.readouterr().err


def test_a_new_database_has_no_policy_before_db_upgrade_made_it(monkeypatch, capsys, settings):
    schema.upgrade(make_engine(settings.database_url))
    assert main(monkeypatch, "policy", "show") == 3
    assert "nightread db upgrade" in capsys.readouterr().err
    assert nightread("db", "upgrade").exit_code == 0
    assert nightread("policy", "show").exit_code == 0
    assert json.loads(nightread("models", "list", "--json").stdout)[0]["state"] == "champion"


def test_the_doctor_finds_an_embedded_site_in_order():
    result = nightread("doctor", "--json")
    assert result.exit_code == 0, result.output
    assert {finding["name"] for finding in json.loads(result.stdout)} == {
        "settings", "database", "clock", "checkpoint", "skipped", "device", "decoders", "broker", "disk",
    }  # fmt: skip


def test_the_doctor_alone_says_that_the_receiver_is_away(monkeypatch):
    logging.getLogger("pynetdicom").setLevel(logging.INFO)  # as in a process that has not used it yet
    monkeypatch.setenv("NIGHTREAD_RECEIVE_PORT", str(free_port()))
    result = nightread("doctor", "--role", "receiver", "--json")
    assert "does not answer a C-ECHO" in result.stdout
    assert result.stderr == "", "the library's own complaint is not for this reader"


@pytest.mark.usefixtures("seeded")
def test_the_doctor_says_when_the_champions_file_has_changed(settings):
    (kept,) = (settings.state_folder / "checkpoints").glob("*.safetensors")
    kept.write_bytes(kept.read_bytes() + b"x")
    result = nightread("doctor", "--json")
    assert result.exit_code == 3
    assert not next(f for f in json.loads(result.stdout) if f["name"] == "checkpoint")["ok"]


@pytest.mark.usefixtures("seeded")
def test_simulate_without_operating_points_says_what_is_missing(tmp_path):
    refused = nightread("simulate", "--days", "1", "--seeds", "1")
    assert refused.exit_code == 2
    assert "how well the model sees is not known" in " ".join(refused.output.replace("│", " ").split())
    cases = tmp_path / "cases.json"
    cases.write_text('{"Pneumothorax": {"prevalence": 0.1, "auc": 0.9}}')
    given = nightread("simulate", "--days", "1", "--seeds", "1", "--cases", cases)
    assert given.exit_code == 0, "nothing else was missing: " + given.output


@pytest.mark.slow
def test_explain_draws_what_the_network_looks_at(tmp_path):
    film = make_film(tmp_path / "a.dcm")
    nightread("score", tmp_path)
    for what in (tmp_path / "a.dcm", film.SOPInstanceUID):
        folder = tmp_path / f"pictures-{str(what)[-4:]}"
        assert nightread("explain", what, "--heatmap", folder).exit_code == 0
        assert (folder / "heatmaps.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("seeded")
def test_explain_cannot_draw_what_is_no_film(tmp_path):
    make_film(tmp_path / "a.dcm", PixelData=b"\0\0")
    assert nightread("explain", tmp_path / "a.dcm", "--heatmap", tmp_path / "pictures").exit_code == 2


@pytest.mark.slow
def test_explain_draws_no_film_that_took_the_place_of_another(tmp_path):
    for folder in ("night", "elsewhere"):
        (tmp_path / folder).mkdir()
    film = make_film(tmp_path / "night" / "a.dcm")
    pixels, uid = texture(seed=7), film.SOPInstanceUID
    other = make_film(tmp_path / "elsewhere" / "b.dcm", pixels=pixels, bits=12, SOPInstanceUID=uid)
    assert other.PixelData != film.PixelData
    nightread("score", tmp_path / "night")
    (tmp_path / "night" / "a.dcm").unlink()
    (tmp_path / "night" / "a.dcm").symlink_to(tmp_path / "elsewhere" / "b.dcm")
    for what in (film.SOPInstanceUID, film.StudyInstanceUID):
        refused = nightread("explain", what, "--heatmap", tmp_path / "pictures")
        assert refused.exit_code == 2
        assert "link" in refused.output
    (tmp_path / "night" / "a.dcm").unlink()
    (tmp_path / "elsewhere" / "b.dcm").rename(tmp_path / "night" / "a.dcm")
    refused = nightread("explain", film.SOPInstanceUID, "--heatmap", tmp_path / "pictures")
    assert refused.exit_code == 2
    assert "other pixels" in refused.output
    assert not (tmp_path / "pictures").exists()


@pytest.mark.parametrize(
    "words",
    [("worklist",), ("status",), ("runs",), ("models", "list"), ("requeue",), ("prune", "--before", "2026-01-01"),
     ("report",)],
)  # fmt: skip
def test_a_mistyped_database_is_refused_by_its_path_and_not_made(monkeypatch, capsys, tmp_path, words):
    monkeypatch.setenv("NIGHTREAD_DATABASE_URL", f"sqlite:///{tmp_path}/nowhere/nihgt.db")
    assert main(monkeypatch, *words) == 3
    assert f"{tmp_path}/nowhere/nihgt.db" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()


def test_the_doctor_does_not_make_a_mistyped_database_either(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("NIGHTREAD_DATABASE_URL", f"sqlite:///{tmp_path}/nowhere/nihgt.db")
    assert main(monkeypatch, "doctor") == 3
    assert "nihgt.db" in capsys.readouterr().out
    assert not (tmp_path / "nowhere").exists()


def test_score_may_begin_a_new_database(monkeypatch, tmp_path):
    monkeypatch.setenv("NIGHTREAD_DATABASE_URL", f"sqlite:///{tmp_path}/new/n.db")
    make_film(tmp_path / "a.dcm")
    assert nightread("score", tmp_path / "a.dcm").exit_code == 0


def test_status_names_what_was_quarantined_and_what_was_skipped(folder):
    nightread("score", folder)
    (cut,) = json.loads(nightread("status", "--quarantined", "--json").stdout)
    assert (cut["path"], cut["reason"]) == (str(folder / "cut.dcm"), "truncated")
    (lateral,) = json.loads(nightread("status", "--skipped", "--json").stdout)
    assert (lateral["path"], lateral["reason"]) == (str(folder / "lateral.dcm"), "lateral_view")
    assert lateral["study_instance_uid"] in nightread("status", "--skipped").stdout


def test_requeue_takes_by_its_reason_what_status_lists(tmp_path):
    film = make_film(tmp_path / "a.dcm")
    make_film(tmp_path / "b.dcm", StudyInstanceUID=film.StudyInstanceUID, PixelData=b"\0\0", pixels=texture(seed=1))
    nightread("score", tmp_path)
    (cut,) = json.loads(nightread("status", "--quarantined", "--json").stdout)
    assert "1 study waits again" in nightread("requeue", "--reason", cut["reason"]).output


def test_requeue_of_a_reason_that_nothing_has_is_refused(monkeypatch, capsys, folder):
    nightread("score", folder)
    assert main(monkeypatch, "requeue", "--reason", "nonsense") == 2
    assert "nonsense" in capsys.readouterr().err


def test_requeue_tells_a_study_without_anything_in_quarantine_from_none(monkeypatch, capsys, tmp_path):
    film = make_film(tmp_path / "a.dcm")
    nightread("score", tmp_path)
    assert main(monkeypatch, "requeue", "--study", str(film.StudyInstanceUID)) == 2
    assert "this study has nothing in quarantine" in capsys.readouterr().err


def test_runs_lists_each_score(folder):
    nightread("score", folder)
    (run,) = json.loads(nightread("runs", "--json").stdout)
    assert (run["kind"], run["scored"], run["quarantined"]) == ("score", 1, 1)


def test_models_list_as_json_has_whole_digests(folder):
    nightread("score", folder)
    (row,) = json.loads(nightread("models", "list", "--json").stdout)
    assert len(row["digest"]) == 64
    assert row["state"] == "champion"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("worklist", "--json", "--csv"), "one of --json and --csv"),
        (("worklist", "--lmit", "3"), "--lmit"),
        (("wroklist",), "wroklist"),
        (("report", "--output", "/nowhere/at/all/page.html"), "/nowhere/at/all"),
        (("simulate", "--plot", "/nowhere/at/all/x.png"), "/nowhere/at/all"),
        (("report", "--output", "/dev/null"), "/dev/null is a device or a folder"),
        (("train", "prepare", "out", "--table", "/"), "'/' is a directory"),
        (("score", "/nowhere/film.dcm"), "/nowhere/film.dcm"),
        (("models", "verdict", "0123"), "no registered checkpoint has a digest that begins with '0123'"),
        (("models", "add", __file__), "test_cli.py is no nightread-checkpoint-1 file"),
        (("explain", "1.2.3", "--layers"), "--layers needs --heatmap"),
        (("explain", "/"), "/ is a folder"),
        (("worklist", "--limit", "99999999999999999999"), "a number is larger than the database can hold"),
        (("prune", "--before", "tomorrow"), "'tomorrow' is no day: write it as 2026-11-30"),
        (("prune", "--before", "0001-01-01"), "no film is of the year 1"),
        (("drift", "--day", "9999-12-31"), "no film is of the year 9999"),
        (("pull", "--from", "0001-01-01"), "no film is of the year 1"),
        (("requeue", "--study", "1.2.3"), "no study has the UID '1.2.3'"),
    ],
)
def test_wrong_usage_is_one_line_that_begins_with_the_commands_name(monkeypatch, capsys, words, part):
    assert main(monkeypatch, *words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("nightread: ")
    assert part in line


def test_the_champion_is_not_promoted_again(monkeypatch, capsys, folder):
    nightread("score", folder)
    (row,) = json.loads(nightread("models", "list", "--json").stdout)
    assert main(monkeypatch, "models", "promote", row["digest"][:12], "--reason", "a test") == 2
    assert "is the champion already" in capsys.readouterr().err


@pytest.mark.parametrize(("zone", "gone"), [("Pacific/Auckland", "0 studies"), ("UTC", "3 studies")])
def test_the_day_of_prune_begins_at_midnight_in_the_sites_zone(monkeypatch, settings, folder, zone, gone):
    nightread("score", folder)
    evening = datetime(2024, 12, 31, 19, tzinfo=UTC)  # in Auckland it is the morning of the new year
    with session_scope(make_engine(settings.database_url)) as session:
        session.execute(update(Study).values(received_at=evening, settled_at=evening))
    monkeypatch.setenv("NIGHTREAD_TIME_ZONE", zone)
    assert f"would go: {gone}" in nightread("prune", "--before", "2025-01-01", "--unread", "--dry-run").stdout


def test_a_question_that_is_left_by_ctrl_d_ends_in_a_sentence(monkeypatch, capsys, folder):
    nightread("score", folder)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    assert main(monkeypatch, "prune", "--before", "2999-01-01", "--unread") == 130
    assert "\nnightread: stopped without an answer\n" in capsys.readouterr().err
    assert json.loads(nightread("status", "--json").stdout)["received"] == 3


def test_score_of_what_is_no_dicom_is_refused(monkeypatch, capsys, tmp_path):
    (tmp_path / "letter.txt").write_text("Dear colleague")
    assert main(monkeypatch, "score", str(tmp_path / "letter.txt")) == 2
    assert "status --rejected" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["mysql://host/n", "nonsense", "postgresql+nodriver://host/n"])
def test_what_is_no_database_url_is_named(monkeypatch, capsys, url):
    monkeypatch.setenv("NIGHTREAD_DATABASE_URL", url)
    assert main(monkeypatch, "worklist") == 2
    assert "NIGHTREAD_DATABASE_URL" in capsys.readouterr().err


def test_a_file_that_is_no_database_is_named(monkeypatch, capsys, tmp_path):
    (tmp_path / "letter.txt").write_text("Dear colleague, " * 100)
    monkeypatch.setenv("NIGHTREAD_DATABASE_URL", f"sqlite:///{tmp_path}/letter.txt")
    assert main(monkeypatch, "worklist") == 3
    assert f"the database {tmp_path}/letter.txt does not answer or refuses: " in capsys.readouterr().err


@pytest.mark.parametrize("words", [("worklist",), ("doctor",)])
def test_a_database_that_is_down_is_named_with_host_port_and_reason(monkeypatch, capsys, words):
    monkeypatch.setenv("NIGHTREAD_DATABASE_URL", "postgresql+psycopg://u:secret@127.0.0.1:1/n")
    assert main(monkeypatch, *words) == 3
    told = "".join(capsys.readouterr())
    assert "127.0.0.1" in told
    assert "port 1" in told
    assert "refused" in told
    assert "secret" not in told


def test_the_version_is_printed(monkeypatch, capsys):
    assert main(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.startswith("nightread ")


def test_a_cell_that_a_spreadsheet_would_run_is_marked_as_text(tmp_path):
    make_film(tmp_path / "a.dcm", AccessionNumber="=1+1")
    nightread("score", tmp_path)
    (row,) = csv.DictReader(io.StringIO(nightread("worklist", "--csv").stdout))
    assert row["accession_number"] == "'=1+1"


def test_a_marked_cell_names_its_study_again_when_the_table_comes_back(tmp_path):
    make_film(tmp_path / "a.dcm", AccessionNumber="=1+1")
    nightread("score", tmp_path)
    (tmp_path / "read.csv").write_text(nightread("worklist", "--csv").stdout.replace("study_instance_uid", "column_2"))
    assert "1 changed, 0 known already, 0 left out" in nightread("read", "--csv", tmp_path / "read.csv").stdout
    assert json.loads(nightread("worklist", "--json").stdout) == []


def test_what_was_named_on_the_command_line_is_left_out_by_its_name():
    assert "B7: no study has this UID" in nightread("read", "B7").stdout


def test_a_study_that_was_skipped_as_a_whole_is_explained_in_a_sentence(tmp_path):
    make_film(tmp_path / "a.dcm", AccessionNumber="SC1", SOPClassUID=SecondaryCaptureImageStorage)
    nightread("score", tmp_path)
    assert "secondary_capture: The object is" in nightread("explain", "SC1").stdout


@pytest.mark.parametrize("group", [(), ("models",), ("policy",), ("train",), ("db",)])
def test_the_overview_of_commands_is_not_cut_at_80_columns(monkeypatch, group):
    monkeypatch.setenv("COLUMNS", "80")
    assert "..." not in nightread(*group, "--help").stdout.partition("Commands:")[2]


def test_prune_keeps_what_nobody_has_read_and_asks_before_it_deletes(folder):
    nightread("score", folder)
    tomorrow = ("prune", "--before", "2999-01-01")
    assert nightread(*tomorrow).exit_code == 2  # nobody can be asked
    assert "3 unread studies kept" in nightread(*tomorrow, "--dry-run").output
    assert "gone: 0 studies" in nightread(*tomorrow, "--yes").output
    assert json.loads(nightread("status", "--json").stdout)["received"] == 3
    assert "gone: 3 studies (3 of them unread)" in nightread(*tomorrow, "--unread", "--yes").output
    assert json.loads(nightread("status", "--json").stdout)["received"] == 0


def test_prune_removes_old_pictures_and_morning_pages_of_the_web_page(settings):
    pictures = settings.state_folder / "pictures"
    pictures.mkdir(parents=True)
    old, new = [pictures / "run-1.html", pictures / "of-a-film.png"], pictures / "run-2.html"
    for file in (*old, new):
        file.write_text("a page")
    for file in old:
        os.utime(file, (0, 0))
    before = ("prune", "--before", "2020-01-01")
    assert "2 pictures and pages of the web page" in nightread(*before, "--dry-run").output
    assert sorted(pictures.iterdir()) == sorted([*old, new])
    assert "2 pictures and pages of the web page" in nightread(*before, "--films-only", "--yes").output
    assert list(pictures.iterdir()) == [new]


def test_a_checkpoint_that_gives_no_probabilities_is_not_registered(tmp_path, monkeypatch, capsys):
    path = save_unsound(tmp_path / "unsound.safetensors")
    assert main(monkeypatch, "models", "add", str(path)) == 2
    assert "no probabilities" in capsys.readouterr().err
    assert json.loads(nightread("models", "list", "--json").stdout) == []


def test_score_ends_with_a_sentence_where_no_checkpoint_can_score(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NIGHTREAD_CHECKPOINT", str(save_unsound(tmp_path / "unsound.safetensors")))
    assert main(monkeypatch, "score", str(folder)) == 3
    assert "NIGHTREAD_CHECKPOINT names cannot score" in capsys.readouterr().err
