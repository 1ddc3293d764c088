"""Settings of a training run. The commands make their options from these fields, so each is described once."""

import tomllib
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from training.errors import TrainingFailed


class UnusableSettings(TrainingFailed, ValueError):
    """Settings that exist, but not for these films or this network; the message says which."""


def read_settings(path: Path, *, known: Collection[str]) -> dict[str, str | list[str]]:
    """Settings of a TOML file, as words: who reads options from a command line checks them in the same way.

    Raises UnusableSettings, which names the file and the key, for a key that is not known and for a value that is none.
    """
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise UnusableSettings(f"{path.name} is no TOML file that can be read: {error}") from error
    settings: dict[str, str | list[str]] = {}
    for key, value in given.items():
        name = key.replace("-", "_")
        if name not in known:
            raise UnusableSettings(f"{path.name}: no setting is called {key!r}; there are {', '.join(sorted(known))}")
        if isinstance(value, dict):
            raise UnusableSettings(f"{path.name}: {key!r} is a table; settings stand at the top, each with one value")
        settings[name] = [str(each) for each in value] if isinstance(value, list) else str(value)
    return settings


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass(frozen=True)
class Settings:
    """How to train; the defaults suit a fine-tune from ImageNet. Fabric reads ``accelerator`` and what follows it.

    Raises UnusableSettings for a schedule or a way to a last layer that does not exist.
    """

    network: str = field(
        default="mobilenet",
        metadata=_help(
            "alexnet, mobilenet, mobilenet_1000, mobilenet_grid, mobilenet_lungs, small, a torchvision classifier by "
            "its name, or timm/NAME where timm is installed"
        ),
    )
    start: str = field(
        default="imagenet",
        metadata=_help(
            "File of ImageNet weights or checkpoint (*.safetensors); imagenet: torchvision fetches them; chance: none"
        ),
    )
    frozen_blocks: int = field(
        default=0, metadata=_help("How many of the network's first feature blocks stay as they started")
    )
    last_layer: str = field(
        default="gradient",
        metadata=_help(
            "gradient: learned with the rest; ridge: nothing else learns, it is solved (mobilenet_grid or "
            "mobilenet_lungs, one device)"
        ),
    )
    ridge_penalty: float = field(default=10, metadata=_help("On the weights of a solved last layer"))
    steady: float = field(
        default=0,
        metadata=_help(
            "Penalty of a solved last layer on what a little grain, a shift by parts of a pixel and sharpness change"
        ),
    )
    loss: str = field(
        default="wbce_normalised", metadata=_help("bce, wbce (the paper's), wbce_normalised or asymmetric")
    )
    learning_rate: float = field(default=3e-4, metadata=_help("Adam's, at its highest; the paper's is .01"))
    schedule: str = field(default="cosine", metadata=_help("cosine (down to 0) or constant"))
    warmup_steps: int = field(default=20, metadata=_help("The rate rises in a straight line over N steps first"))
    weight_decay: float = field(default=0.01, metadata=_help("Decoupled from the rate (AdamW); at 0 it is plain Adam"))
    epochs: int = field(default=20, metadata=_help("How many"))
    steps_per_epoch: int = field(
        default=0, metadata=_help("Batches per epoch; 0 is as many as show each film about once")
    )
    patience_epochs: int = field(
        default=0, metadata=_help("Stop after N epochs without a better macro AUROC on validation; 0: never")
    )
    batch_size: int = field(default=64, metadata=_help("Films per step and device"))
    augment: bool = field(default=True, metadata=_help("Turn, move, scale and relight the films a little"))
    mirror: bool = field(
        default=False,
        metadata=_help("Show each film mirrored left to right in every second pass: half of the films in each"),
    )
    seed: int = field(default=2026, metadata=_help("Of everything that is drawn"))
    purpose: str = field(
        default="",
        metadata=_help("Only use of a checkpoint that must never rank real films, e.g. of one learned from drawings"),
    )
    half_checkpoint: bool = field(
        default=True, metadata=_help("Store the checkpoint's matrices and kernels in float16")
    )
    precision: str = field(default="32-true", metadata=_help("32-true, 16-mixed or bf16-mixed"))
    accelerator: str = field(default="auto", metadata=_help("auto, cpu, gpu or mps"))
    strategy: str = field(default="auto", metadata=_help("auto, ddp, ..."))
    devices: int = field(default=1, metadata=_help("Devices per node"))
    nodes: int = field(default=1, metadata=_help("Machines"))

    def __post_init__(self) -> None:
        if self.schedule not in ("cosine", "constant"):
            raise UnusableSettings(f"schedule is cosine or constant, not {self.schedule!r}")
        if self.last_layer not in ("gradient", "ridge"):
            raise UnusableSettings(f"last-layer is gradient or ridge, not {self.last_layer!r}")
        grids = ("mobilenet_grid", "mobilenet_lungs")
        if self.last_layer == "ridge" and (self.network not in grids or self.devices * self.nodes != 1):
            raise UnusableSettings(f"a last layer is solved for the networks {' and '.join(grids)}, on one device")
        if self.network == "mobilenet_lungs" and not self.start.endswith(".safetensors"):
            raise UnusableSettings("mobilenet_lungs starts from a checkpoint of `nightread train lungs` or of its own")
        if self.ridge_penalty <= 0:
            raise UnusableSettings(f"ridge-penalty must be above 0, not {self.ridge_penalty}")
        if self.steady < 0 or (self.steady and self.last_layer != "ridge"):
            raise UnusableSettings("steady is 0 or more, and above 0 only for a solved last layer (--last-layer ridge)")


@dataclass(frozen=True)
class Selection:
    """Which films to train, validate and test on."""

    split: str = field(
        default="patient",
        metadata=_help(
            "patient, stable (by a hash of the patient), official (NIH's) or image (as the paper did; leaks)"
        ),
    )
    lists: Path | None = field(
        default=None,
        metadata=_help("Folder of train.txt, validation.txt and test.txt, as a run folder has; instead of --split"),
    )
    apart_from: Path | None = field(
        default=None,
        metadata=_help("Prepared folder whose patients are left out here, such as the films that will judge"),
    )
    shares: tuple[float, float, float] = field(
        default=(0.6, 0.2, 0.2),
        metadata=_help("Shares of train, validation and test, for the splits patient and image; they sum to 1"),
    )
    findings: list[str] | None = field(
        default=None, metadata=_help("Learn this finding; may be given again; all when not given")
    )
    undersample: bool = field(default=False, metadata=_help("Drop most of the common training films, as the paper did"))
    common_share: float = field(
        default=0.105, metadata=_help("What undersampling keeps of films with common findings only")
    )
    no_finding_share: float = field(default=0.0, metadata=_help("What undersampling keeps of films without findings"))
    oversample_below: float = field(
        default=0.0, metadata=_help("Repeat training films of findings rarer than this share; 0 repeats none")
    )
