"""One worker process: the live checkpoint and the shadow on a device, decoders, and a name to hold leases under."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import structlog
from sqlalchemy import Engine

from training.checkpoint import load_checkpoint
from worker.context import Context, Live, process_name
from worker.monitoring.prometheus import WorkMetrics
from worker.scoring.decoder_pool import DecoderPool
from worker.scoring.decoding import DecodeOptions
from worker.scoring.inference import Classifier, choose_device, share_cores
from worker.scoring.shadow import Shadow, open_shadow

log = structlog.get_logger()


@dataclass
class Scorer:
    """One worker process: a checkpoint on a device, decoders, and a name to hold leases under."""

    context: Context
    live: Live
    classifier: Classifier
    shadow: Shadow
    decoders: DecoderPool
    metrics: WorkMetrics
    worker: str
    should_stop: Callable[[], bool]

    @property
    def engine(self) -> Engine:
        return self.context.engine

    @property
    def films_ahead(self) -> int:
        """Films to keep claimed: two batches for the network and one in each decoder."""
        return 2 * self.classifier.batch_size + self.context.settings.decoders


@contextmanager
def open_scorer(
    context: Context, *, metrics: WorkMetrics | None = None, should_stop: Callable[[], bool] = lambda: False
) -> Iterator[Scorer]:
    """Load the live checkpoint and the shadow onto the device and start the decoders; all end with the block."""
    live, metrics = context.live(), metrics or WorkMetrics()
    if live.header.purpose != context.purpose:
        log.warning("checkpoint_not_for_real_films", digest=live.short, purpose=live.header.purpose)
    worker = process_name()
    with open_network(context, live) as (classifier, decoders):
        shadow = open_shadow(context, live, classifier, metrics=metrics)
        yield Scorer(context, live, classifier, shadow, decoders, metrics, worker, should_stop)


@contextmanager
def open_network(context: Context, live: Live) -> Iterator[tuple[Classifier, DecoderPool]]:
    """A checkpoint's network on the device, and decoders that make the inputs it reads.

    Raises TooLittleMemory where these could decode no film.
    """
    settings, options = context.settings, DecodeOptions.of(context, live.header.preprocessing)
    with DecoderPool(options, decoders=settings.decoders) as decoders:
        require_working = decoders.begin_proof()  # while the network is loaded
        checkpoint, device = load_checkpoint(live.path, expected_digest=live.digest), choose_device(settings.device)
        threads = share_cores() if device.type == "cpu" else 1
        classifier = Classifier(checkpoint, device=device, batch_size=settings.batch_size, threads=threads)
        require_working()
        yield classifier, decoders


def with_shadow(scorer: Scorer) -> Scorer:
    """The same scorer with what is in shadow now; only between two studies, or it would mix two checkpoints in one."""
    return replace(scorer, shadow=open_shadow(scorer.context, scorer.live, scorer.classifier, metrics=scorer.metrics))
