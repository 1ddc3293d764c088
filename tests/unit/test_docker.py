"""The container files name only what exists: no engine builds them here, so what can be checked without one is."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from pydantic.fields import FieldInfo

from db import roles
from db.base import Base
from db.models import Drift
from db.session import make_engine, session_scope
from tests.drills import containers as drill
from tests.support.commands import require_command
from tests.support.night_rows import add_champion, open_run
from tests.support.page_commands import chapters
from tests.support.setting_texts import descriptions
from worker.monitoring.prometheus import LedgerCollector, PullMetrics, ReceiveMetrics, WorkMetrics
from worker.settings import Settings

REPOSITORY = Path(__file__).parents[2]
DOCKER = REPOSITORY / "docker"
COMPOSE_FILES = sorted(DOCKER.glob("compose*.yaml"))
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("nightread-")}
ENV_EXAMPLE = (DOCKER / ".env.example").read_text()


def tool(name: str) -> str:
    """A command of this environment."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed for this kind of machine")
    return found


def test_every_image_of_others_can_be_pinned_in_env() -> None:
    images = {service["image"] for name, service in SERVICES.items() if name not in OURS}
    named = [re.fullmatch(r"\$\{([A-Z]+_IMAGE):-([a-z/]+:[\w.-]+)\}", image) for image in images]
    assert all(named), images
    for variable, image in (match.groups() for match in named if match):
        assert f"\n#{variable}={image}\n" in ENV_EXAMPLE
    (python,) = {service["build"]["args"]["PYTHON_IMAGE"] for service in OURS.values()}
    base = re.search(r"^ARG PYTHON_IMAGE=(.+)$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    assert base is not None
    assert python == f"${{PYTHON_IMAGE:-{base[1]}}}"
    assert f"\n#PYTHON_IMAGE={base[1]}\n" in ENV_EXAMPLE


# ---------------------------------------------------------------------------------------------------------- settings


def setting_blocks() -> dict[str, str]:
    """NIGHTREAD_NAME -> its lines in .env.example: what settings.py says of it, and its default."""
    texts = descriptions()
    return {
        name: "".join(f"# {line}\n" for line in texts[name].splitlines()) + f"#{name}={default(field)}\n"
        for name, field in Settings.variables().items()
    }


def default(field: FieldInfo) -> str:
    """A default as the environment would hold it; nothing where it is unset or worked out on the machine."""
    match None if field.default_factory else field.default:
        case None:
            return ""
        case tuple() as parts:
            return ",".join(parts)
        case bool() as flag:
            return str(flag).lower()
        case value:
            return str(value)


@pytest.mark.parametrize(("name", "block"), setting_blocks().items())
def test_every_setting_stands_in_the_example_with_its_text_and_default(name: str, block: str) -> None:
    assert block in ENV_EXAMPLE, f"docker/.env.example needs:\n{block}"


@pytest.mark.parametrize("path", [*COMPOSE_FILES, DOCKER / ".env.example", DOCKER / "Dockerfile"], ids=lambda p: p.name)
def test_every_setting_named_in_a_file_exists(path: Path) -> None:
    known = set(setting_blocks()) | {"NIGHTREAD_SECRETS"}
    assert set(re.findall(r"\bNIGHTREAD_[A-Z_]+\b", path.read_text())) <= known


def test_every_variable_that_compose_reads_stands_in_the_example_with_its_default() -> None:
    read = {match for path in COMPOSE_FILES for match in re.findall(r"\$\{(\w+):?-([^}]*)\}", path.read_text())}
    assert read
    assert [name for name, value in sorted(read) if f"#{name}={value}\n" not in ENV_EXAMPLE] == []


def test_with_tls_every_process_that_connects_has_the_authoritys_certificate() -> None:
    with_tls = yaml.safe_load((DOCKER / "compose.tls.yaml").read_text())["services"]
    connects = {name for name, service in OURS.items() if service.get("profiles") != ["train"]}
    assert {name for name in connects if "ca_certificate" not in with_tls.get(name, {}).get("secrets", [])} == set()


def test_secrets_that_set_settings_are_named_like_them() -> None:
    targets = {s["target"] for service in OURS.values() for s in service["secrets"] if isinstance(s, dict)}
    assert targets == {"nightread_database_url", "nightread_broker_url"}
    assert {target.upper() for target in targets} <= set(setting_blocks())


# ---------------------------------------------------------------------------------------------- commands and paths


def commands() -> Iterator[tuple[str, list[str]]]:
    for name, service in OURS.items():
        if "command" in service:
            yield name, service["command"]
        if "healthcheck" in service:
            _, program, *words = service["healthcheck"]["test"]
            assert program == "nightread"
            yield f"{name}'s health", words


@pytest.mark.parametrize(("name", "words"), list(commands()), ids=lambda value: value if isinstance(value, str) else "")
def test_every_command_that_a_container_runs_exists_with_its_options(name: str, words: list[str]) -> None:
    require_command(name, words)


def test_everything_that_is_copied_or_mounted_exists() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    copied = {source for line in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE) for source in line.split()}
    assert [source for source in copied if not (REPOSITORY / source).exists()] == []
    kept = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().split() if line.startswith("!")}
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    packages = project["tool"]["setuptools"]["packages"]["find"]["include"]
    needed = {package.rstrip("*") for package in packages} | {project["project"]["readme"]} | copied
    assert needed | set(project["project"]["license-files"]) == kept, "the last step of the build installs the context"
    mounts = {m for path in COMPOSE_FILES for m in re.findall(r"(\./[\w./-]+):/", path.read_text())}
    assert [mount for mount in mounts if not (DOCKER / mount).exists()] == []


def test_the_images_of_worker_and_training_differ_in_what_learns_alone() -> None:
    """So that they share the layers of torch, whichever index it comes from."""
    worker, training = (OURS[name]["build"]["args"] for name in ("worker", "training-worker"))
    assert training == worker | {"EXTRAS": "train"}


def test_make_secrets_makes_every_secret_and_keeps_what_is_there(tmp_path: Path) -> None:
    def run() -> dict[str, bytes]:
        environment = {"PATH": "/usr/bin:/bin", "NIGHTREAD_SECRETS": str(tmp_path)}
        subprocess.run([str(DOCKER / "make-secrets")], check=True, capture_output=True, env=environment)
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    made = run()
    assert {Path(secret["file"]).name for secret in COMPOSE["secrets"].values()} == set(made)
    assert set(roles.ROLES) <= set(made)
    assert made["nightread_worker"] in made["worker_database_url"]
    assert run() == made


def test_the_servers_certificates_hold_for_the_names_by_which_other_machines_know_them(tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "NIGHTREAD_SECRETS": str(tmp_path)}
    command = [str(DOCKER / "make-secrets"), "--tls", "first.example", "second.example"]
    subprocess.run(command, check=True, capture_output=True, env=environment)

    def holds(server: str, name: str) -> bool:
        files = ["-CAfile", str(tmp_path / "ca_certificate"), str(tmp_path / f"{server}_certificate")]
        verify = ["openssl", "verify", "-verify_hostname", name, *files]
        return subprocess.run(verify, capture_output=True, check=False).returncode == 0

    for server in ("redis", "postgres"):
        assert all(holds(server, name) for name in (server, "localhost", "first.example", "second.example"))
        assert not holds(server, "third.example")


def test_every_secret_and_service_that_is_named_is_declared() -> None:
    for path in COMPOSE_FILES:
        file = yaml.safe_load(path.read_text())
        declared = set(COMPOSE["secrets"]) | set(file.get("secrets", {}))
        for name, service in file["services"].items():
            assert name in SERVICES
            named = {s["source"] if isinstance(s, dict) else s for s in service.get("secrets", [])}
            assert named <= declared, f"{path.name}: {name}"


# ------------------------------------------------------------------------------------------------ order and hardening


@pytest.mark.parametrize("name", SERVICES)
def test_service_runs_without_root_rights_on_a_read_only_file_system(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert int(service["user"].split(":")[0]) > 0
    assert "privileged" not in service


CALLS_OUT = {"puller", "delivery"}  # on the edge to reach archives, and reached by nobody


@pytest.mark.parametrize("name", SERVICES)
def test_only_services_on_the_edge_publish_ports_and_only_to_this_machine(name: str) -> None:
    service = SERVICES[name]
    internal = {network for network, options in COMPOSE["networks"].items() if options.get("internal")}
    assert ("ports" in service) == (not set(service["networks"]) <= internal and name not in CALLS_OUT)
    for port in service.get("ports", []):
        assert re.fullmatch(r"\$\{[A-Z_]+:-127\.0\.0\.1:\d+\}:\d+", port)


@pytest.mark.parametrize("name", SERVICES)
def test_service_waits_for_conditions_that_can_come_true(name: str) -> None:
    for other, wait in SERVICES[name].get("depends_on", {}).items():
        if wait["condition"] == "service_healthy":
            assert "healthcheck" in SERVICES[other]
        else:
            assert wait["condition"] == "service_completed_successfully"
            assert SERVICES[other]["restart"].startswith("on-failure")


@pytest.mark.parametrize("path", COMPOSE_FILES, ids=lambda path: path.name)
def test_compose_files_keep_to_the_compose_specification(path: Path) -> None:
    command = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(path)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_dockerfile_passes_hadolint() -> None:
    checked = subprocess.run(
        [tool("hadolint"), str(DOCKER / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout


# ----------------------------------------------------------------------------------------------------------- metrics


@pytest.fixture(scope="module")
def metric_names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Every name that the services expose."""
    engine = make_engine(f"sqlite:///{tmp_path_factory.mktemp('ledger')}/nightread.db")
    Base.metadata.create_all(engine)
    now = datetime.now(UTC)
    with session_scope(engine) as session:
        champion = add_champion(session)
        open_run(session).last_settled_at = now
        moved = {"measure": "psi", "subject": "Mass", "value": 0.2, "reference": 0.05, "level": "warn", "films": 300}
        session.add(Drift(day=f"{now:%Y-%m-%d}", checkpoint_id=champion.id, computed_at=now, **moved))
    ledger = CollectorRegistry()
    ledger.register(LedgerCollector(engine))
    services = [each().registry for each in (WorkMetrics, ReceiveMetrics, PullMetrics)]
    names = set()
    for family in chain.from_iterable(registry.collect() for registry in (*services, ledger)):
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        names |= {family.name + suffix for suffix in suffixes}
    engine.dispose()
    return names


@pytest.mark.parametrize("file", ["grafana/nightread.json", "prometheus/alerts.yml"])
def test_every_metric_that_is_watched_exists(file: str, metric_names: set[str]) -> None:
    named = set(re.findall(r"nightread_[a-z_]+", expressions(DOCKER / file)))
    assert len(named) > 4
    assert named - metric_names == set()


def test_every_metric_is_on_the_dashboard(metric_names: set[str]) -> None:
    shown = expressions(DOCKER / "grafana" / "nightread.json")
    assert [name for name in metric_names if re.sub("_(sum|count|bucket)$", "", name) not in shown] == []


def test_every_reason_that_wakes_someone_is_one_that_the_service_gives() -> None:
    matchers = re.findall(r'reason=~"([^"]+)"', expressions(DOCKER / "prometheus" / "alerts.yml"))
    sources = "".join(path.read_text() for path in (REPOSITORY / "worker").rglob("*.py"))
    assert [code for matcher in matchers for code in matcher.split("|") if f'"{code}"' not in sources] == []


def test_prometheus_asks_services_that_exist_on_the_port_they_serve() -> None:
    config = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
    for job in config["scrape_configs"]:
        for lookup in job["dns_sd_configs"]:
            for name in lookup["names"]:
                assert SERVICES[name]["environment"]["NIGHTREAD_METRICS_PORT"] == str(lookup["port"])
                assert set(SERVICES[name]["networks"]) & set(SERVICES["prometheus"]["networks"])


def expressions(path: Path) -> str:
    """All PromQL of a dashboard or of alert rules."""
    if path.suffix == ".json":
        panels = json.loads(path.read_text())["panels"]
        return "\n".join(target["expr"] for panel in panels for target in panel["targets"])
    groups = yaml.safe_load(path.read_text())["groups"]
    return "\n".join(rule["expr"] for group in groups for rule in group["rules"])


def test_the_dockerfile_fetches_no_frontend_and_compiles_nothing_twice() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    assert "# syntax=" not in text, "BuildKit would fetch it, and nothing here needs it"
    assert "compileall" not in text, "pip has compiled what it installed, and torch holds sources of a newer Python"


def test_postgres_is_healthy_only_when_it_listens_on_the_network() -> None:
    assert "--host=127.0.0.1" in SERVICES["postgres"]["healthcheck"]["test"]


def test_no_tmpfs_names_an_owner_which_podman_refuses() -> None:
    mounts = [mount for service in SERVICES.values() for mount in service.get("tmpfs", [])]
    assert mounts
    assert [mount for mount in mounts if re.search(r"\b[ug]id=", mount)] == []


def test_the_drill_types_every_chapter_of_its_page() -> None:
    typed = re.findall(r'type_chapter\("(.+)"\)', Path(drill.__file__).read_text())
    page = chapters(drill.PAGE)
    assert [title for title in page if title not in drill.NOT_TYPED] == typed, "in the page's order"
    assert set(drill.NOT_TYPED) <= set(page)
    commands = "".join(page[title] for title in typed)
    assert [words for words in drill.TYPED_OTHERWISE if words not in commands] == []
