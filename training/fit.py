"""The training loop, top to bottom: a prepared data set with a split goes in, a run folder with a checkpoint comes out.

    run.json                 what was asked, and for which films
    train.txt ...            the split, as lists of images
    metrics.csv              a row per epoch
    checkpoint.safetensors   the best epoch by macro AUROC on validation, calibrated there; without validation the last
    resume.ckpt              all that is needed to go on from the end of an epoch
    events.out.tfevents...   the same figures for TensorBoard (and, if asked for, for MLflow or W&B)

Lightning Fabric brings devices, strategies, nodes and precision; the loop is ours. All chance comes from (seed, epoch)
and (seed, place in the stream of films), so a run that was killed and started again ends like one that was not.
"""

import hashlib
import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar, cast

import numpy as np
import pandas as pd
import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers.tensorboard import TensorBoardLogger
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from scipy.special import expit
from torch import Tensor, nn

from training import last_layer
from training.augmentation import Augmentation, slightly_changed
from training.calibration import fit_calibration, reference, thresholds
from training.checkpoint import Calibration, Header, build, load_checkpoint, read_header, save_checkpoint
from training.errors import TrainingFailed
from training.grids import GridLayer, MobileNetGrid, MobileNetLungs
from training.imaging.allocator import keep_freed_memory
from training.imaging.look_ahead import look_ahead
from training.imaging.preprocessing import Greys, Preprocessing
from training.loggers import make_logger
from training.losses import make_loss, shift_of, targets
from training.manifest import counts, prevalence
from training.metrics import evaluate
from training.networks import WrongWeights, input_of, make_network, start_from
from training.prepared import Prepared
from training.sampling import SPLITS, STABLE, save_lists
from training.settings import Settings, UnusableSettings

CHECKPOINT: Final = "checkpoint.safetensors"
_RESUME: Final = "resume.ckpt"
_BATCHES_OF_LOSS: Final = 32  # of a solved layer: all of a large set's would fill the memory

Item = TypeVar("Item")
Result = TypeVar("Result")


class OtherRun(TrainingFailed):
    """The run folder was begun with other settings or films."""


class Diverged(TrainingFailed):
    """The loss is no number any more; the learning rate was too high."""


class Films(NamedTuple):
    """Part of a prepared set: images (places, size, size) in 0 to 255, places in use (N,), labels (N, F)."""

    images: Greys
    places: NDArray[np.int64]
    labels: NDArray[np.uint8]

    @classmethod
    def of(cls, prepared: Prepared, split: str | None) -> "Films":
        """The films of one part of the split, or all."""
        part = prepared.manifest if split is None else prepared.manifest[prepared.manifest["split"] == split]
        return cls(prepared.images, part.index.to_numpy(), part[list(prepared.findings)].to_numpy())

    def read(self, which: NDArray[np.int64]) -> Tensor:
        """(N, size, size) in 0 to 255 of the films at these ranks among those in use."""
        return torch.from_numpy(np.asarray(self.images[self.places[which]]))


@dataclass(frozen=True)
class Learner:
    """The learner, set up on its devices: the network's logits (N, F) meet the labels in the loss."""

    fabric: Fabric
    settings: Settings
    preprocessing: Preprocessing
    network: nn.Module
    optimizer: torch.optim.Optimizer
    loss: nn.Module
    steps_per_epoch: int


def fit(
    prepared: Prepared,
    settings: Settings,
    folder: Path,
    *,
    code_commit: str = "",
    progress: bool = True,
    split: str = "",
    loggers: Sequence[str] = (),
) -> Path:
    """Train on the films whose split is "train"; the path of the checkpoint, which records how they were split.

    It says "stable" only where what it starts from says so too: weights that may have learned from a test patient do
    not forget him.

    Started again on its own folder, after a kill at any moment, it goes on from the last whole epoch; on a CPU with as
    many threads the figures and the checkpoint's digest are those of an undisturbed run. Asked for more epochs, a
    finished run goes on; the cosine schedule then follows the new length from there. Raises OtherRun when the folder
    holds an epoch with other settings or films, Diverged, UnusableSettings (so for a logger that is not installed), and
    WrongWeights or a CheckpointError for weights that cannot be the start.
    """
    fabric = launch(settings, folder, loggers=loggers)
    asked = _asked(folder, prepared, settings)
    train, validation = Films.of(prepared, "train"), Films.of(prepared, "validation")
    preprocessing = input_of(settings.network, size=prepared.preprocessing.size)
    learner = make_learner(fabric, settings, train, findings=prepared.findings, preprocessing=preprocessing)
    header = _header(prepared, learner, code_commit=code_commit, split=split)
    _begin(fabric, folder, prepared, asked)  # now: what cannot be trained leaves nothing behind
    state: dict[str, Any] = {
        "network": learner.network,
        "optimizer": learner.optimizer,
        "best": math.nan,
        "epochs_without_better": 0,
        "history": [],
    }
    if settings.last_layer == "ridge":
        inputs = _solved(learner.network)[1].evidence.in_features
        state["sums"] = last_layer.no_films(inputs=inputs, findings=len(header.findings))
    if (folder / _RESUME).exists():
        fabric.load(folder / _RESUME, state, weights_only=True)

    for epoch in range(len(state["history"]), settings.epochs):
        if settings.patience_epochs and state["epochs_without_better"] >= settings.patience_epochs:
            break
        standing = f"epoch {epoch + 1}/{settings.epochs}"
        standing += "" if math.isnan(state["best"]) else f", best macro AUROC {state['best']:.3f}"
        shown = standing if progress else ""
        if settings.last_layer == "ridge":
            train_loss = solve_last_layer(learner, train, state["sums"], epoch=epoch, progress=shown)
        else:
            train_loss = train_epoch(learner, train, epoch=epoch, progress=shown)
        logits = predict(
            learner.network, validation, learner.preprocessing, batch_size=settings.batch_size, fabric=fabric
        )
        figures = figures_on_validation(logits, validation, learner.loss, findings=header.findings)
        rate = rate_at((epoch + 1) * learner.steps_per_epoch - 1, learner)
        state["history"].append({"epoch": epoch + 1, "learning_rate": rate, "train_loss": train_loss, **figures})

        auroc = figures.get("validation/auroc/macro", math.nan)
        if not auroc <= state["best"]:  # so that without an AUROC to compare the last epoch counts
            state |= {"best": auroc, "epochs_without_better": 0}
            if fabric.is_global_zero:
                training = {**header.training, "epoch": epoch + 1}
                best = _calibrated(replace(header, training=training), logits, validation.labels, loss=learner.loss)
                state_dict = learner.network.state_dict()
                save_checkpoint(folder / CHECKPOINT, best, state=state_dict, half=settings.half_checkpoint)
        else:
            state["epochs_without_better"] += 1
        # Last, so that a kill before it repeats the epoch, which writes the same checkpoint once more.
        _save_resumable(fabric, folder, state)
        fabric.log_dict(state["history"][-1], step=epoch + 1)
    for logger in fabric.loggers:
        logger.finalize("success")
    return folder / CHECKPOINT


def train_epoch(learner: Learner, films: Films, *, epoch: int, progress: str = "") -> float:
    """One epoch (counted from 0); the mean loss of its steps. progress: what the bar says; none when empty."""
    fabric, network, optimizer = learner.fabric, learner.network, learner.optimizer
    torch.manual_seed(_seed(learner.settings.seed, epoch, fabric.global_rank))  # dropout's only source
    _set_training(network)
    batches = _shown(learner, films, epoch=epoch, progress=progress)
    summed = torch.zeros((), device=fabric.device)
    for step, (images, labels) in enumerate(batches, start=epoch * learner.steps_per_epoch):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, learner)
        loss = learner.loss(network(learner.preprocessing.tensor(images)).float(), labels)
        optimizer.zero_grad()
        fabric.backward(loss)
        optimizer.step()
        summed += loss.detach()
    mean = float(torch.as_tensor(fabric.all_reduce(summed, reduce_op="mean"))) / learner.steps_per_epoch
    if not math.isfinite(mean):
        raise Diverged(f"the loss left the numbers in epoch {epoch + 1}: take a lower learning rate")
    return mean


@torch.no_grad()
def solve_last_layer(learner: Learner, films: Films, sums: last_layer.Sums, *, epoch: int, progress: str = "") -> float:
    """One pass over the films, added to the sums, and the last layer solved from all of them; its loss on the last
    films of this pass. The rest of the network stays as it started; of a mobilenet_lungs it is the layer that
    reads the whole film, and its loss without the other layer."""
    network, layer = _solved(learner.network.eval())
    steady, drawn = learner.settings.steady, torch.Generator().manual_seed(learner.settings.seed + epoch)
    seen: deque[tuple[Tensor, Tensor]] = deque(maxlen=_BATCHES_OF_LOSS)
    for images, labels in _shown(learner, films, epoch=epoch, progress=progress):
        inputs = network.pooled(learner.preprocessing.tensor(images))
        last_layer.add(sums, inputs, labels)
        if steady:
            changed = learner.preprocessing.tensor(slightly_changed(images, drawn=drawn))
            last_layer.add_changes(sums, network.pooled(changed) - inputs, weight=steady)
        seen.append((inputs, labels))
    penalty = learner.settings.ridge_penalty * layer.inputs_alike()
    layer.set_last_layer(*last_layer.solve(sums, penalty=penalty, eps=layer.norm.eps))
    return float(torch.stack([learner.loss(layer.last_layer(inputs), labels) for inputs, labels in seen]).mean())


def _solved(network: nn.Module) -> tuple[MobileNetGrid | MobileNetLungs, GridLayer]:
    """The network out of Fabric's wrapper, and its layer that is solved; Settings allow a ridge for no other one."""
    network = cast(MobileNetGrid | MobileNetLungs, getattr(network, "module", network))
    return network, network.whole if isinstance(network, MobileNetLungs) else network


def _shown(learner: Learner, films: Films, *, epoch: int, progress: str) -> Iterable[tuple[Tensor, Tensor]]:
    """`training_batches` under a progress bar, where there is something to say."""
    return track(
        training_batches(learner, films, epoch=epoch),
        description=progress,
        total=learner.steps_per_epoch,
        disable=not (progress and learner.fabric.is_global_zero),
        console=Console(stderr=True),
    )


def training_batches(learner: Learner, films: Films, *, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's batches of an epoch on its device: images (N, size, size) in 0 to 255, the loss's labels (N, F).

    The films come in one endless stream of reshuffled passes, of which each epoch takes the next piece.
    """
    fabric, settings, steps = learner.fabric, learner.settings, learner.steps_per_epoch
    per_step = settings.batch_size * fabric.world_size
    start, end = epoch * steps * per_step, (epoch + 1) * steps * per_step
    order = _stream(len(films.places), settings.seed, start=start, end=end)
    own = np.arange(settings.batch_size) + settings.batch_size * fabric.global_rank
    augmentation = Augmentation()

    def read(step: int) -> tuple[list[int], Tensor, Tensor]:
        which = order[step * per_step + own]
        positions = start + step * per_step + own
        images = films.read(which)
        if settings.mirror:  # each film in every second pass, half of the films in each
            mirrored = torch.from_numpy((positions // len(films.places) + which) % 2 == 1)
            images[mirrored] = images[mirrored].flip(2)
        return positions.tolist(), images, targets(films.labels[which])

    for positions, images, labels in _ahead(read, range(steps)):
        images, labels = fabric.to_device((images, labels))
        yield augmentation(images, seed=settings.seed, positions=positions) if settings.augment else images, labels


@torch.inference_mode()
def predict(
    network: nn.Module, films: Films, preprocessing: Preprocessing, *, batch_size: int, fabric: Fabric
) -> NDArray[np.float32]:
    """Logits (N, F) of all the films, in their order; the processes share the work and all get the whole."""
    network.eval()
    processes, films_each = fabric.world_size, math.ceil(len(films.places) / fabric.world_size)
    own = (fabric.global_rank + processes * np.arange(films_each)) % max(1, len(films.places))
    pieces = [own[start : start + batch_size] for start in range(0, films_each, batch_size)]
    outputs = [network(preprocessing.tensor(fabric.to_device(images))).float() for images in _ahead(films.read, pieces)]
    logits = torch.cat([torch.zeros(0, films.labels.shape[1], device=fabric.device), *outputs])
    if processes > 1:
        gathered = torch.as_tensor(fabric.all_gather(logits))  # (processes, films_each, F)
        logits = gathered.transpose(0, 1).flatten(0, 1)[: len(films.places)]
    whole: NDArray[np.float32] = logits.cpu().numpy()
    return whole


def rate_at(step: int, learner: Learner) -> float:
    """The learning rate of a step: a straight rise, then half a cosine down to 0 at the last step, or no change."""
    settings = learner.settings
    rise = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    done = step / (settings.epochs * learner.steps_per_epoch)
    return settings.learning_rate * rise * ((1 + math.cos(math.pi * done)) / 2 if settings.schedule == "cosine" else 1)


def launch(settings: Settings, folder: Path, *, loggers: Sequence[str] = ()) -> Fabric:
    """Start the processes, or join them; figures go to TensorBoard files in the folder, and to these loggers."""
    keep_freed_memory()  # every layer's output is a large block: a seventh more images/s on a CPU
    precision: Any = settings.precision  # Fabric checks the word itself
    fabric = Fabric(
        accelerator=settings.accelerator,
        strategy=settings.strategy,
        devices=settings.devices,
        num_nodes=settings.nodes,
        precision=precision,
        loggers=[TensorBoardLogger(folder, name="", version=""), *(make_logger(name, folder) for name in loggers)],
    )
    fabric.launch()
    return fabric


def make_learner(
    fabric: Fabric, settings: Settings, train: Films, *, findings: Sequence[str], preprocessing: Preprocessing
) -> Learner:
    """The network at its start, its optimizer and its loss, the same for the same seed."""
    torch.manual_seed(settings.seed)
    solved = settings.last_layer == "ridge"  # to log odds as they are, which no weighting has shifted
    loss = make_loss("bce" if solved else settings.loss, frequency=torch.from_numpy(prevalence(train.labels)).float())
    if settings.start.endswith(".safetensors"):
        shift = shift_of(loss, findings=len(findings))
        network = from_checkpoint(Path(settings.start), network=settings.network, findings=findings, shift=shift)
    else:
        pretrained = {"imagenet": True, "chance": False}.get(settings.start, Path(settings.start))
        network = make_network(settings.network, findings=len(findings), pretrained=pretrained)
    if settings.frozen_blocks:
        freeze(network, blocks=settings.frozen_blocks)
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    once = round(len(train.places) / settings.batch_size / fabric.world_size)
    steps = settings.steps_per_epoch or max(1, once)
    network, optimizer = fabric.setup(network.to(memory_format=torch.channels_last), optimizer)  # faster on a CPU too
    return Learner(fabric, settings, preprocessing, network, optimizer, fabric.to_device(loss), steps)


def from_checkpoint(path: Path, *, network: str, findings: Sequence[str], shift: Sequence[float]) -> nn.Module:
    """A checkpoint's network, saying what the checkpoint says, moved by the new loss's shift (F,).

    Its last layer takes over what its calibration says, so that its logits are calibrated log odds plus the new shift:
    where this loss wants them. As stored they carry another loss's shift, up to 4 of log odds, which the first steps
    would have to unlearn; and the difference of the two shifts would not do, because a cross-fitted checkpoint's holds
    its folds' centre too. A mobilenet_grid may start from a mobilenet: it takes over the blocks, and a last layer that
    says nothing yet. Raises WrongWeights for a checkpoint of another network or other findings, and what
    `load_checkpoint` and `build` raise.
    """
    start = load_checkpoint(path, findings=None)
    if (start.network, network) == ("mobilenet", "mobilenet_grid"):
        grid = make_network(network, findings=len(findings))
        start_from(grid, start.state)
        return grid
    if start.network != network:
        raise WrongWeights(f"{path.name} is a {start.network} and cannot be the start of a {network}")
    if start.findings != tuple(findings):
        raise WrongWeights(f"{path.name} scores {', '.join(start.findings)}; the films say {', '.join(findings)}")
    built = build(start)
    last = [module for module in built.modules() if isinstance(module, nn.Linear)][-1:]
    calibration = start.calibration
    numbers = calibration.shift, calibration.slope, calibration.intercept, shift
    old, slope, intercept, new = map(torch.tensor, numbers)  # (F,)
    with torch.no_grad():
        for layer in last:  # none where a network ends otherwise: that one starts with the logits it has
            if layer.bias is not None and len(layer.bias) == len(findings):
                layer.weight.mul_(slope[:, None])
                layer.bias.sub_(old).mul_(slope).add_(intercept + new)
    return built


def freeze(network: nn.Module, *, blocks: int) -> None:
    """Keep the first blocks of ``network.features`` as they are. Raises UnusableSettings when it has no such blocks."""
    features = getattr(network, "features", None)
    if not isinstance(features, nn.Sequential) or blocks > len(features):
        raise UnusableSettings(f"this network has no {blocks} feature blocks to freeze")
    features[:blocks].requires_grad_(False)


def _set_training(network: nn.Module) -> None:
    """Training mode, but for frozen parts: their batch norms must not drift away from weights that stand still."""
    network.train()
    for module in network.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def _asked(folder: Path, prepared: Prepared, settings: Settings) -> dict[str, Any]:
    """The request, for run.json. Raises OtherRun where the folder holds an epoch of something else.

    Only more epochs may be asked for: a run that is finished is then extended.
    """
    films = prepared.manifest.loc[prepared.manifest["split"].isin(SPLITS), ["image", "split", *prepared.findings]]
    films_digest = hashlib.sha256(films.to_csv().encode()).hexdigest()
    asked = asdict(settings) | {"size": prepared.preprocessing.size, "films_digest": films_digest}
    if (folder / _RESUME).exists():
        begun = json.loads((folder / "run.json").read_text())
        if begun | {"epochs": asked["epochs"]} != asked or begun["epochs"] > asked["epochs"]:
            raise OtherRun(
                f"{folder} was begun with other settings or films, or by another version of Nightread: "
                "take another folder or remove it"
            )
    return asked


def _begin(fabric: Fabric, folder: Path, prepared: Prepared, asked: dict[str, Any]) -> None:
    """Write down what is asked and the split."""
    fabric.barrier()
    if fabric.is_global_zero:
        save_lists(prepared.manifest, folder)
        (folder / "run.json").write_text(json.dumps(asked, indent=2) + "\n")


def _of_start(split: str, start: str) -> dict[str, Any]:
    """Facts about a network that starts from a checkpoint: what it learned from before, and a split that it can
    claim no better than its start can."""
    if not start.endswith(".safetensors"):
        return {"split": split}
    before = read_header(Path(start)).training
    doubtful = split == STABLE and before.get("split") != STABLE
    claimed = f"{STABLE}, but not of what it starts from" if doubtful else split
    learned = {
        name: before[name]
        for name in ("settings", "films", "patients", "positives", "outline", "start")
        if name in before
    }
    return {"split": claimed, "start": learned}


def _header(prepared: Prepared, learner: Learner, *, code_commit: str, split: str) -> Header:
    """Facts known before training; the same for the same settings and films, wherever they are."""
    parts = {split: prepared.manifest[prepared.manifest["split"] == split] for split in SPLITS}
    training = {
        "settings": asdict(learner.settings) | {"start": Path(learner.settings.start).name},
        **_of_start(split, learner.settings.start),
        **counts(parts, findings=prepared.findings),
    }
    return Header(
        network=learner.settings.network,
        findings=prepared.findings,
        preprocessing=learner.preprocessing,
        training=training,
        code_commit=code_commit,
        purpose=learner.settings.purpose or _purpose_of(learner.settings.start),
    )


def _purpose_of(start: str) -> str:
    """A checkpoint's purpose goes on in what starts from it."""
    return read_header(Path(start)).purpose if start.endswith(".safetensors") else ""


def figures_on_validation(
    logits: NDArray[np.float32], films: Films, loss: nn.Module, *, findings: Sequence[str]
) -> dict[str, float]:
    """The epoch's figures on validation, none without films. Outputs are raw and decided at .5, as in the paper."""
    if not len(films.places):
        return {}
    outputs = expit(logits.astype(np.float64))
    figures = evaluate(films.labels, outputs, findings=findings).flat()
    device = next((buffer.device for buffer in loss.buffers()), torch.device("cpu"))
    validation_loss = loss(torch.from_numpy(logits).to(device), targets(films.labels).to(device))
    return {"validation/loss": float(validation_loss)} | {f"validation/{name}": float(x) for name, x in figures.items()}


def _calibrated(header: Header, logits: NDArray[np.float32], labels: NDArray[np.uint8], *, loss: nn.Module) -> Header:
    """The header with what validation says; without validation films only the loss's shift is taken back."""
    shift = shift_of(loss, findings=len(header.findings))
    if not len(labels):
        return replace(header, calibration=Calibration(shift, (1.0,) * len(shift), (0.0,) * len(shift)))
    return with_evidence(header, fit_calibration(logits, labels, shift=shift), logits, labels)


def with_evidence(
    header: Header, calibration: Calibration, logits: NDArray[np.floating], labels: NDArray[np.uint8]
) -> Header:
    """The header with a calibration, and the thresholds, reference and AUROCs that logits and labels (N, F) give it."""
    probabilities = calibration.probabilities(logits)
    return replace(
        header,
        calibration=calibration,
        thresholds=thresholds(probabilities, labels, findings=header.findings),
        reference=reference(probabilities, findings=header.findings),
        training={**header.training, "auroc": aurocs(labels, probabilities, findings=header.findings)},
    )


def aurocs(
    labels: NDArray[np.uint8], probabilities: NDArray[np.floating], *, findings: Sequence[str]
) -> dict[str, float]:
    """finding -> AUROC, where both kinds of films are there."""
    ranked = evaluate(labels, probabilities, findings=findings).per_finding["auroc"].dropna()
    return {str(finding): round(float(auroc), 4) for finding, auroc in ranked.items()}


def _save_resumable(fabric: Fabric, folder: Path, state: dict[str, Any]) -> None:
    """resume.ckpt and metrics.csv, each whole or not at all."""
    resume, metrics = folder / f"{_RESUME}.part", folder / "metrics.csv.part"
    fabric.save(resume, state)
    if fabric.is_global_zero:
        resume.replace(folder / _RESUME)
        pd.DataFrame(state["history"]).to_csv(metrics, index=False)
        metrics.replace(folder / "metrics.csv")
    fabric.barrier()


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _stream(films: int, seed: int, *, start: int, end: int) -> NDArray[np.int64]:
    """Which film stands at the places start to end of the endless stream of reshuffled passes over all the films."""
    passes = range(start // films, (end - 1) // films + 1)
    shuffled = np.concatenate([np.random.default_rng((seed, number)).permutation(films) for number in passes])
    return shuffled[start - passes[0] * films : end - passes[0] * films]


def _ahead(read: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """``map``, while a thread reads the next results: the network must not wait for the disk."""
    with ThreadPoolExecutor(1) as reader:
        for future in look_ahead(lambda item: reader.submit(read, item), items, depth=2):
            yield future.result()
