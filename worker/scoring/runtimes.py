"""What runs a network: OpenVINO on a CPU, torch on every other device, and where OpenVINO cannot."""

import sys
import warnings
from contextlib import nullcontext
from typing import Any, Final, Protocol

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.checkpoint import Checkpoint, build
from training.imaging.preprocessing import Greys, Preprocessing

log = structlog.get_logger()

MOST_KEPT: Final = 2  # compiled networks: champion and shadow
APART: Final = 1e-2  # the most that a compiled network's logits may differ; those of the one that ships do by 4e-6

_kept: dict[tuple[str, int], Any] = {}  # compiled networks, by the checkpoint's digest and the number of threads


class Runtime(Protocol):
    """A network on its device."""

    def __call__(self, inputs: Greys, *, batch_size: int) -> NDArray[np.float32]:
        """(N, size, size) in 0 to 255 -> logits (N, findings). batch_size: the films of a full pass, at least N.

        A film's logits do not depend on its neighbours. Raises RuntimeError where a pass fails; the next one may work.
        """


def make_runtime(checkpoint: Checkpoint, device: torch.device, *, threads: int) -> Runtime:
    """What runs a checkpoint's network on the device. threads: of a CPU."""
    network = build(checkpoint)
    if device.type == "cpu":
        try:
            return OpenvinoRuntime(_compiled(checkpoint, network, threads), threads=threads)
        except Exception as error:  # noqa: BLE001 - whatever OpenVINO cannot do, torch can, which it was trained by
            log.warning("network_not_compiled", error=type(error).__name__, detail=" ".join(str(error).split())[-300:])
    return TorchRuntime(network, checkpoint.preprocessing, device)


def _compiled(checkpoint: Checkpoint, network: nn.Module, threads: int) -> Any:
    """Its network as OpenVINO compiled it: kept, since a new policy or a new shadow opens the same one again.

    Raises RuntimeError where the compiled network, which is another program on every kind of CPU, says something else
    of a few inputs than the trained one. So it does of NaN, which torch keeps to the end and a compiled ReLU does not.
    """
    key = checkpoint.digest, threads
    if key not in _kept:
        compiled = compile_network(network, checkpoint.preprocessing, threads=threads)
        inputs = generated_inputs(checkpoint.preprocessing.size)
        with torch.inference_mode():
            logits = network(checkpoint.preprocessing.tensor(inputs)).numpy()
        served = OpenvinoRuntime(compiled, threads=threads)(inputs, batch_size=len(inputs))
        if not np.allclose(served, logits, rtol=APART, atol=APART):
            raise RuntimeError("the compiled network has other logits than the trained one")
        _kept[key] = compiled
        for oldest in list(_kept)[:-MOST_KEPT]:
            del _kept[oldest]
    return _kept[key]


def compile_network(network: nn.Module, preprocessing: Preprocessing, *, threads: int) -> Any:
    """OpenVINO's program for a network in evaluation mode on this machine's CPU, in float32."""
    # OpenVINO's converter tells Intel, by Google Analytics, that it was imported; its absence is no error.
    sys.modules.setdefault("openvino.tools.ovc", None)  # type: ignore[arg-type]
    from openvino import Core, Type
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    frontend = FrontEndManager().load_by_framework("pytorch")
    try:
        decoder = TorchScriptPythonDecoder(_traced(network, preprocessing))  # must live until it is converted
        model = frontend.convert(frontend.load(decoder))
    finally:
        torch._C._jit_clear_class_registry()  # else torch keeps what it traced for good, 10 MB
    model.reshape([1, preprocessing.size, preprocessing.size])
    properties = {
        "INFERENCE_PRECISION_HINT": Type.f32,  # else bfloat16 where the CPU has it
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": threads,
        "ENABLE_CPU_PINNING": False,  # other workers have the same cores
    }
    return Core().compile_model(model, "CPU", properties)


def generated_inputs(size: int) -> NDArray[np.uint8]:
    """uint8 (5, size, size), always the same: black, white, a slope of greys, noise, and two dark lungs in a bright
    body: what a network does with lungs is used, too."""
    ramp = np.linspace(0, 255, size)
    slope = ((ramp[:, None] + ramp) / 2).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (size, size), dtype=np.uint8)
    down, across = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    lungs = (np.abs(across) - 0.4) ** 2 / 0.08 + (down + 0.1) ** 2 / 0.4 < 1
    body = np.abs(across) < 0.9
    chest = np.where(lungs, 60, np.where(body, 180, 5)).astype(np.uint8)
    return np.stack([np.zeros_like(slope), np.full_like(slope, 255), slope, noise, chest])


class OpenvinoRuntime:
    """A network as OpenVINO compiled it for this machine's CPU: two thirds of torch's time.

    Every film is computed by itself, as many at once as there are threads: a film's layers stay in a core's cache, and
    no thread waits for another one.
    """

    def __init__(self, compiled: Any, *, threads: int) -> None:
        self._compiled = compiled
        self._requests = self._new_requests(threads)

    def _new_requests(self, number: int) -> list[Any]:
        return [self._compiled.create_infer_request() for _ in range(number)]

    def __call__(self, inputs: Greys, *, batch_size: int) -> NDArray[np.float32]:  # noqa: ARG002 - there are no passes
        at_once = len(self._requests)
        films = inputs.astype(np.float16, copy=False)
        try:
            logits = [self._side_by_side(films[first : first + at_once]) for first in range(0, len(films), at_once)]
        except Exception:  # what failed, or still runs, is of no more use
            self._requests = self._new_requests(at_once)
            raise
        return np.concatenate(logits)

    def _side_by_side(self, films: NDArray[np.float16]) -> NDArray[np.float32]:
        at_work = self._requests[: len(films)]
        for request, film in zip(at_work, films, strict=True):
            request.start_async([film[None]])
        for request in at_work:
            request.wait()
        return np.concatenate([request.get_output_tensor().data for request in at_work])


class _FromGreys(nn.Module):
    """A network together with what makes its input of greys."""

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network, self.preprocessing = network, preprocessing

    def forward(self, greys: Tensor) -> Tensor:
        logits: Tensor = self.network(self.preprocessing.tensor(greys))
        return logits


@torch.inference_mode()
def _traced(network: nn.Module, preprocessing: Preprocessing) -> torch.jit.ScriptModule:
    example = torch.zeros(1, preprocessing.size, preprocessing.size, dtype=torch.float16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch will once do without it: OpenVINO's own converter needs it, too
        traced: torch.jit.ScriptModule = torch.jit.trace(  # type: ignore[no-untyped-call]
            _FromGreys(network, preprocessing), example, check_trace=False
        )
    return traced


class TorchRuntime:
    """A network as torch runs it, with half precision on CUDA.

    Every pass runs at the full batch size, filled up with black: kernels add in an order that depends on the batch's
    shape.
    """

    def __init__(self, network: nn.Module, preprocessing: Preprocessing, device: torch.device) -> None:
        self._preprocessing, self._device = preprocessing, device
        self.network = network.to(device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, inputs: Greys, *, batch_size: int) -> NDArray[np.float32]:
        full = np.zeros((batch_size, *inputs.shape[1:]), dtype=np.float16)
        full[: len(inputs)] = inputs
        images = torch.from_numpy(full).to(self._device, non_blocking=True)  # (B, size, size)
        network_input = self._preprocessing.tensor(images).contiguous(memory_format=torch.channels_last)  # (B, C, s, s)
        with self._autocast():
            logits: Tensor = self.network(network_input)  # (B, findings)
        return logits.float().cpu().numpy()[: len(inputs)]

    def _autocast(self) -> Any:
        return torch.autocast("cuda", dtype=torch.float16) if self._device.type == "cuda" else nullcontext()
