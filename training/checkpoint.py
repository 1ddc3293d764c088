"""A trained network as one file: weights, findings, preprocessing, calibration, thresholds and where it came from.

The file is safetensors, so loading parses numbers and a JSON header and runs no code. Torch is imported only where
tensors are: a command that lists checkpoints reads headers and starts quickly.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from training.findings import FINDINGS
from training.imaging.preprocessing import Preprocessing
from training.imaging.whole_file import whole_file

if TYPE_CHECKING:
    from torch import Tensor, nn

SHIPPED = Path(__file__).parent / "checkpoints" / "mobilenet-nih-films.safetensors"
"""The checkpoint that comes with the project; docs/reference/model-card.md says what it is worth."""

_FORMAT = "nightread-checkpoint-1"
_MAX_HEADER_BYTES = 16 * 2**20
_KINDS = {"network": str, "code_commit": str, "purpose": str, "thresholds": dict, "reference": dict, "training": dict}


class CheckpointError(Exception):
    """A file that cannot serve as a checkpoint; the message says why."""


class MissingCheckpoint(CheckpointError):
    """No such file, or it cannot be read."""


class DamagedCheckpoint(CheckpointError):
    """Not a checkpoint's safetensors file, cut short, or with a header that contradicts itself."""


class UnsoundCheckpoint(DamagedCheckpoint):
    """The file is whole, but its weights are no finite numbers or its network gives no probabilities."""

    def __init__(self, sentence: str, *, digest: str = "") -> None:
        super().__init__(sentence)
        self.digest = digest


class WrongDigest(CheckpointError):
    """The file is not the one that was asked for."""


class UnknownArchitecture(CheckpointError):
    """The checkpoint names a network that this version cannot build, or its weights do not fit that network."""


class WrongPurpose(CheckpointError):
    """The checkpoint is made for something else than ranking real films, such as the demo."""


class VocabularyMismatch(CheckpointError):
    """The checkpoint speaks of other findings, or orders them differently."""


@dataclass(frozen=True)
class Calibration:
    """Logits -> probabilities, per finding, in the order of the checkpoint's findings.

    shift: what the loss's weighting added to the logits (natural-log odds), taken back first.
    slope, intercept: Platt's two numbers, fitted at natural prevalence.
    isotonic: instead of Platt for the findings that it names, a rising table ((logit, ...), (probability, ...)).
    """

    shift: tuple[float, ...] = (0.0,) * len(FINDINGS)
    slope: tuple[float, ...] = (1.0,) * len(FINDINGS)
    intercept: tuple[float, ...] = (0.0,) * len(FINDINGS)
    isotonic: Mapping[int, tuple[tuple[float, ...], tuple[float, ...]]] = field(default_factory=dict)

    def probabilities(self, logits: NDArray[np.floating]) -> NDArray[np.float32]:
        """float (N, findings) -> float32 (N, findings) in [0, 1]."""
        unshifted = np.asarray(logits, dtype=np.float64) - self.shift  # (N, findings)
        odds = np.asarray(self.slope) * unshifted + self.intercept
        probabilities = 0.5 * (1 + np.tanh(odds / 2))  # the sigmoid, without overflow
        for finding, (knots, heights) in self.isotonic.items():
            probabilities[:, finding] = np.interp(unshifted[:, finding], knots, heights)
        return probabilities.astype(np.float32)

    @classmethod
    def from_header(cls, header: Mapping[str, Any]) -> "Calibration":
        """Read from the JSON header, which made lists of the tuples and strings of the keys."""
        isotonic = {int(key): (tuple(x), tuple(y)) for key, (x, y) in header["isotonic"].items()}
        return cls(tuple(header["shift"]), tuple(header["slope"]), tuple(header["intercept"]), isotonic)


@dataclass(frozen=True)
class Header:
    """A checkpoint's description of itself; JSON in the file.

    network: a name that ``networks.make_network`` knows. findings: the order of its outputs.
    thresholds: finding -> {"sensitivity_90": probability, "flag_10": probability}, flagged where >=.
    reference: {"films": n, "levels": [0 .. 1], "probabilities": {finding: [a quantile per level]}} on validation
    films, against which drift is judged. training: a summary of settings, data and figures. purpose: the only use of a
    checkpoint that must not rank real films, such as "demo, learned from drawings"; empty for all others.
    """

    network: str
    findings: tuple[str, ...] = FINDINGS
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    calibration: Calibration = field(default_factory=Calibration)
    thresholds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    reference: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    code_commit: str = ""
    purpose: str = ""

    def cuts(self, name: str) -> dict[str, float]:
        """Finding -> its threshold of this name ("flag_10"). A table may be partial, or missing: `fit` without
        validation films writes none."""
        return cuts_of(self.thresholds, name)


def cuts_of(thresholds: Mapping[str, Mapping[str, float]], name: str) -> dict[str, float]:
    """`Header.cuts` of a table that stands somewhere else, as the database's copy does."""
    return {finding: cuts[name] for finding, cuts in thresholds.items() if name in cuts}


@dataclass(frozen=True)
class Checkpoint(Header):
    """A loaded file: its header, its weights by name (as stored), and the SHA-256 of its bytes in hex."""

    state: Mapping[str, "Tensor"] = field(default_factory=dict, repr=False)
    digest: str = ""

    @property
    def header(self) -> Header:
        """Its header, without the weights."""
        return Header(**{name: getattr(self, name) for name in Header.__dataclass_fields__})


def save_checkpoint(path: Path, header: Header, *, state: "Mapping[str, Tensor]", half: bool = False) -> str:
    """Write the file whole or not at all; the SHA-256 of its bytes in hex. The same input gives the same bytes.

    half: keep matrices and kernels in float16. Vectors stay float32: a batch norm's variances leave float16's range.
    """
    import torch
    from safetensors.torch import save

    def stored(tensor: "Tensor") -> "Tensor":
        tensor = tensor.detach().cpu().contiguous()
        return tensor.half() if half and tensor.dtype == torch.float32 and tensor.dim() >= 2 else tensor

    # One metadata entry only: safetensors writes several in an order that changes from run to run.
    metadata = {_FORMAT: json.dumps(asdict(header), sort_keys=True, allow_nan=False)}
    data = save({name: stored(tensor) for name, tensor in state.items()}, metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        part.write_bytes(data)
        part.chmod(0o644)  # whatever the umask: a worker of another user must read it
    return hashlib.sha256(data).hexdigest()


def read_header(path: Path, *, expected_digest: str | None = None) -> Header:
    """The header alone, without the weights and without torch.

    expected_digest: SHA-256 in hex that the whole file must have. Raises the CheckpointError that fits.
    """
    try:
        with path.open("rb") as file:
            if expected_digest is not None:
                _check_digest(path, hashlib.file_digest(file, "sha256").hexdigest(), expected_digest)
                file.seek(0)
            size = int.from_bytes(file.read(8), "little")  # safetensors: u64, then that many bytes of JSON
            return _parse_header(file.read(min(size, _MAX_HEADER_BYTES)), path)
    except OSError as error:
        raise MissingCheckpoint(f"cannot read checkpoint {path.name}: {error.strerror}") from error


def load_checkpoint(
    path: Path, *, expected_digest: str | None = None, findings: tuple[str, ...] | None = FINDINGS
) -> Checkpoint:
    """Read and check the whole file.

    expected_digest: SHA-256 in hex that the bytes must have. findings: the vocabulary that the caller needs, in its
    order, or None to take any. Raises the CheckpointError that fits.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        data = path.read_bytes()
    except OSError as error:
        raise MissingCheckpoint(f"cannot read checkpoint {path.name}: {error.strerror}") from error
    digest = hashlib.sha256(data).hexdigest()
    if expected_digest is not None:
        _check_digest(path, digest, expected_digest)
    header = _parse_header(data[8 : 8 + int.from_bytes(data[:8], "little")], path)
    if findings is not None and header.findings != findings:
        raise VocabularyMismatch(f"{path.name} scores {', '.join(header.findings)}; needed: {', '.join(findings)}")
    try:
        state = load(data)
    except SafetensorError as error:
        raise DamagedCheckpoint(f"{path.name} is cut short or damaged: {error}") from error
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UnsoundCheckpoint(f"{path.name} has weights that are no finite numbers, in {name}", digest=digest)
    return Checkpoint(**vars(header), state=state, digest=digest)


def build(checkpoint: Checkpoint) -> "nn.Module":
    """The checkpoint's network in evaluation mode, float32, on the CPU, giving logits (N, findings)."""
    from training.networks import UnknownNetwork, make_network

    try:
        network = make_network(checkpoint.network, findings=len(checkpoint.findings))
        network.load_state_dict({key: _full(tensor) for key, tensor in checkpoint.state.items()})
    except UnknownNetwork as error:
        raise UnknownArchitecture(str(error)) from error
    except RuntimeError as error:  # load_state_dict's word for missing, unexpected or misshapen tensors
        raise UnknownArchitecture(f"the weights do not fit {checkpoint.network}") from error
    return network.eval()


def _full(tensor: "Tensor") -> "Tensor":
    return tensor.float() if tensor.is_floating_point() else tensor


def _check_digest(path: Path, digest: str, expected: str) -> None:
    if digest != expected.lower():
        raise WrongDigest(f"{path.name} has digest {digest[:12]}…, expected {expected[:12]}…")


def _parse_header(raw: bytes, path: Path) -> Header:
    try:
        fields = json.loads(json.loads(raw)["__metadata__"][_FORMAT])
        header = Header(
            **{
                **fields,
                "findings": tuple(fields["findings"]),
                "preprocessing": Preprocessing.from_header(fields["preprocessing"]),
                "calibration": Calibration.from_header(fields["calibration"]),
            }
        )
        _check(header)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = f"{type(error).__name__}: {error}"[:200]  # not its repr, which holds the file's bytes
        raise DamagedCheckpoint(f"{path.name} is no {_FORMAT} file, or its header is incomplete ({why})") from error
    return header


def _check(header: Header) -> None:
    """Check what a constructor does not. Raises the CheckpointError that fits."""
    for name, kind in _KINDS.items():
        if not isinstance(getattr(header, name), kind):
            raise DamagedCheckpoint(f"its {name} is no {'text' if kind is str else 'table'}")
    if not set(header.findings) <= set(FINDINGS) or len(set(header.findings)) != len(header.findings):
        raise VocabularyMismatch(f"the checkpoint scores {', '.join(map(str, header.findings))}")
    _check_summary(header.training)
    _check_reference(header.reference, header.findings)
    calibration = header.calibration
    for numbers in (calibration.shift, calibration.slope, calibration.intercept):
        if len(numbers) != len(header.findings) or not np.isfinite(np.array(numbers, dtype=float)).all():
            raise DamagedCheckpoint("the calibration needs one finite number per finding")
    if not set(calibration.isotonic) <= set(range(len(header.findings))):
        raise DamagedCheckpoint("an isotonic table belongs to no finding")
    if not all(_is_rising(np.array(knots), np.array(heights)) for knots, heights in calibration.isotonic.values()):
        raise DamagedCheckpoint("an isotonic table does not rise from finite logits to probabilities")
    for finding, cuts in header.thresholds.items():
        if finding not in header.findings or not all(0 <= cut <= 1 for cut in cuts.values()):
            raise DamagedCheckpoint(f"the thresholds of {finding} are no probabilities, or it is no finding here")


def _check_summary(training: Mapping[str, Any]) -> None:
    """Check what pages, simulation and calibration read of a training's summary."""
    for name in ("films", "patients", "positives", "known", "auroc", "pointing"):
        if not isinstance(training.get(name, {}), dict):
            raise DamagedCheckpoint(f"its training's {name} is no table")
    for name in ("films", "patients"):
        if not all(isinstance(count, int) and count >= 0 for count in training.get(name, {}).values()):
            raise DamagedCheckpoint(f"its training's {name} are no numbers")
    for record in training.get("pointing", {}).values():
        if not 0 <= record["hits"] <= record["boxes"] or not 0 <= record["chance"] <= 1 or len(record) != 3:
            raise DamagedCheckpoint("a record of its heat maps counts more hits than outlines, or no share as chance")


def _check_reference(reference: Mapping[str, Any], findings: tuple[str, ...]) -> None:
    """Check that there is none, or quantiles of every finding."""
    if not reference:
        return
    levels = np.array(reference["levels"], dtype=float)
    for finding in findings:
        if not _is_rising(np.array(reference["probabilities"][finding], dtype=float), levels):
            raise DamagedCheckpoint(f"its reference of {finding} does not rise with its levels")
    if not 0 < reference["films"] < math.inf:
        raise DamagedCheckpoint("its reference is made of no films")


def _is_rising(knots: NDArray[np.floating], heights: NDArray[np.floating]) -> bool:
    """Whether a table gives every logit a probability, and a higher logit none that is lower."""
    if knots.ndim != 1 or not 0 < len(knots) == heights.size or not np.isfinite([*knots, *heights]).all():
        return False
    rises = (np.diff(knots) >= 0).all() and (np.diff(heights) >= 0).all()
    return bool(rises and heights[0] >= 0 and heights[-1] <= 1)
