"""`nightread receive`: the DICOM receiver."""

import signal
import threading

import typer

from worker.terminal.console import open_context

app = typer.Typer()


@app.command()
def receive() -> None:
    """Receive films by DICOM (C-STORE), and notify the workers.

    Runs until SIGTERM. A film is on disk and in the database before its sender hears of success.
    NIGHTREAD_RECEIVE_* say who may send and where films are kept; storage commitment is answered to the nodes of
    NIGHTREAD_PEERS.
    """
    from worker.dicom_network.storage_scp import Receiver, run_receiver
    from worker.monitoring.prometheus import ReceiveMetrics, page
    from worker.queue.maintenance import notifier

    context, metrics, stopping = open_context(service=True), ReceiveMetrics(), threading.Event()
    context.seed()
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, lambda *_: stopping.set())
    settings = context.settings.metrics
    with page(metrics.registry, port=settings.port, address=settings.address):
        run_receiver(Receiver.of(context, metrics=metrics), stopping=stopping, notify=notifier(context))
