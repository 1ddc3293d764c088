"""An Orthanc that is away for minutes while results are due, and back: make away MINUTES=10.

`nightread deliver` and `nightread receive` run as processes with their default pauses, beside an Orthanc in a network
namespace of its own (as root; Debian: apt-get install orthanc orthanc-dicomweb iproute2). A third of the studies is out
before Orthanc is killed, a third is published while it is away, and the rest has another film by then. In the end every
study must have its report in Orthanc, once for each revision, each of them confirmed by storage commitment.

Ends with exit code 0 when all of it held, and 1 when something did not.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from pydicom.uid import Comprehensive3DSRStorage, generate_uid
from sqlalchemy import func, select

from db.models import Delivery
from db.session import read_scope
from tests.support.contexts import seeded_context, site_settings
from tests.support.crew import running, wait_until
from tests.support.dicom_files import make_film
from tests.support.orthanc import AE_TITLE, DICOM_PORT, Orthanc, orthanc
from tests.support.scored import score_at_once
from tests.support.untrained import save_untrained
from worker.context import Context
from worker.intake.receive import receive

RECEIVER_PORT = 11112  # where Orthanc's configuration looks for NIGHTREAD


def scored(context: Context, studies: list[str]) -> None:
    """A new film for each of these studies, registered and scored."""
    paths = [context.state_folder / f"{generate_uid()}.dcm" for _ in studies]
    for path, uid in zip(paths, studies, strict=True):
        make_film(path, StudyInstanceUID=uid)
    receive(context, paths)
    score_at_once(context)


def states(context: Context) -> Counter[str]:
    """How many results are in each state."""
    with read_scope(context.engine) as session:
        counted = select(Delivery.state, func.count()).group_by(Delivery.state)
        return Counter(dict(row._tuple() for row in session.execute(counted)))


def attempts(context: Context) -> int:
    """How often something was sent, all results together."""
    with read_scope(context.engine) as session:
        return session.scalar(select(func.sum(Delivery.attempts))) or 0


def wrong_in(context: Context, archive: Orthanc, *, reports: int) -> list[str]:
    """Errors in the end: in the outbox, and in what Orthanc holds."""
    with read_scope(context.engine) as session:
        wanted = session.execute(select(Delivery.object_uid, Delivery.state)).all()
    held = Counter(
        found["MainDicomTags"]["SOPInstanceUID"] for found in archive.instances(SOPClassUID=Comprehensive3DSRStorage)
    )
    sent = {uid for uid, state in wanted if state == "confirmed"}
    checks = {
        f"{len(sent)} results are confirmed, and not {reports}": len(sent) == reports,
        f"{len(sent - held.keys())} confirmed results are not in Orthanc": sent <= held.keys(),
        f"{len(held.keys() - sent)} reports in Orthanc are none that was confirmed": held.keys() <= sent,
        f"{sum(held.values())} reports in Orthanc have {len(held)} UIDs": held.total() == len(held),
    }
    return [text for text, holds in checks.items() if not holds]


def drill(context: Context, archive: Orthanc, log: Path, *, studies: int, away_seconds: float) -> list[str]:
    """Let Orthanc go away and come back; returns what was wrong in the end."""
    uids = [str(generate_uid()) for _ in range(studies)]
    before, late = uids[: studies // 3], uids[2 * studies // 3 :]
    with ExitStack() as stack:
        with archive.namespace.entered():  # a process stays where it was started
            stack.enter_context(running(context, "receive", log))
            stack.enter_context(running(context, "deliver", log))
        scored(context, before + late)
        first = len(before + late)
        wait_until(lambda: states(context) == Counter(confirmed=first), log=log)
        tries = attempts(context)
        archive.stop(at_once=True)
        began = time.monotonic()
        scored(context, [uid for uid in uids if uid not in before])  # the last third has its second film now
        in_all = first + studies - len(before)
        _sleep_until(lambda: time.monotonic() - began >= away_seconds)
        print(f"away for {time.monotonic() - began:.0f} s: {dict(states(context))}, "
              f"{attempts(context) - tries} attempts", flush=True)  # fmt: skip
        archive.start()
        back = time.monotonic()
        wait_until(lambda: states(context) == Counter(confirmed=in_all), seconds=2 * away_seconds + 120, log=log)
        print(f"all {in_all} results confirmed {time.monotonic() - back:.0f} s after Orthanc was back, "
              f"{attempts(context) - tries} attempts for {in_all - first} of them", flush=True)  # fmt: skip
        time.sleep(5)  # for what might be sent once more
    return wrong_in(context, archive, reports=in_all)


def _sleep_until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.5)


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--minutes", type=float, default=10)
    asked.add_argument("--studies", type=int, default=21)
    chosen = asked.parse_args()
    with tempfile.TemporaryDirectory() as home, orthanc() as archive:
        folder = Path(home)
        peers = folder / "peers.toml"
        os.environ["NIGHTREAD_PEERS"] = str(peers)
        peers.write_text(f'[archive]\nae_title = "{AE_TITLE}"\nhost = "127.0.0.1"\nport = {DICOM_PORT}\n')
        settings = site_settings(
            folder,
            checkpoint=save_untrained(folder / "untrained.safetensors"),
            deliver={"sr": ("archive",), "quiet_seconds": 0},
            receive={"port": RECEIVER_PORT, "free_mb": 1},
        )
        context = seeded_context(settings, champion=settings.checkpoint)
        wrong = drill(context, archive, folder / "log", studies=chosen.studies, away_seconds=60 * chosen.minutes)
    print("\n".join(f"WRONG: {text}" for text in wrong) or "each result once, each confirmed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
