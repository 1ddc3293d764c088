"""What runs a network: OpenVINO on a processor, torch on every other device."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Final

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from openvino import AsyncInferQueue, Core, InferRequest, Type
from openvino.frontend import FrontEndManager, GeneralFailure, NotImplementedFailure, OpConversionFailure
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from torch import Tensor, nn

from training.imaging.preprocessing import Greys, Preprocessing

log = structlog.get_logger()

PROCESSOR: Final = "CPU"  # OpenVINO's name of it
NOT_COMPILED: Final = (RuntimeError, GeneralFailure, NotImplementedFailure, OpConversionFailure)

Engine = Callable[[Greys, int], NDArray[np.float32]]
"""Network inputs (N, size, size) in 0 to 255, and the most that may be in one pass, at least N -> logits (N, findings).
Raises RuntimeError."""


def make_engine(network: nn.Module, preprocessing: Preprocessing, device: torch.device) -> Engine:
    """The network, ready to run on the device."""
    if device.type == "cpu":
        try:
            return OnProcessor(network, preprocessing)
        except NOT_COMPILED as error:  # as of a network of timm with an operation that OpenVINO does not know
            log.warning("network_not_compiled", error=type(error).__name__)
    return OnDevice(network, preprocessing, device)


class OnProcessor:
    """A network compiled for this machine's processor, in float32: two thirds of torch's time.

    Every film is computed by itself, and as many at a time as torch may have threads: a film's layers then stay in a
    core's cache, and no thread waits for another one.
    """

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        threads = torch.get_num_threads()
        frontend = FrontEndManager().load_by_framework("pytorch")
        # Not openvino.convert_model, which does these two steps too, and tells Intel by Google Analytics that it did.
        decoder = TorchScriptPythonDecoder(_traced(network, preprocessing))  # must live until it is converted
        model = frontend.convert(frontend.load(decoder))
        model.reshape([1, preprocessing.size, preprocessing.size])
        properties = {
            "INFERENCE_PRECISION_HINT": Type.f32,  # else bfloat16 where the processor has it
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": threads,
            "ENABLE_CPU_PINNING": False,  # other workers have the same cores
        }
        compiled = Core().compile_model(model, PROCESSOR, properties)
        self._findings = compiled.output(0).shape[1]
        self._queue = AsyncInferQueue(compiled, threads)
        self._queue.set_callback(_keep)

    def __call__(self, inputs: Greys, _batch_size: int) -> NDArray[np.float32]:
        logits = np.full((len(inputs), self._findings), np.nan, dtype=np.float32)
        for network_input, row in zip(inputs.astype(np.float16, copy=False), logits, strict=True):
            self._queue.start_async([network_input[None]], row)
        self._queue.wait_all()
        return logits


def _keep(request: InferRequest, row: NDArray[np.float32]) -> None:
    row[:] = request.get_output_tensor().data[0]


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
        warnings.simplefilter("ignore")  # that it will once be gone; OpenVINO's own conversion uses it
        traced: torch.jit.ScriptModule = torch.jit.trace(  # type: ignore[no-untyped-call]
            _FromGreys(network, preprocessing), example, check_trace=False
        )
    return traced


class OnDevice:
    """A network as torch runs it, with half precision on CUDA.

    Every pass runs at the full batch size, filled up with black: kernels add in an order that depends on the batch's
    shape, and a film's probabilities must not depend on how many neighbours it had.
    """

    def __init__(self, network: nn.Module, preprocessing: Preprocessing, device: torch.device) -> None:
        self._preprocessing, self._device = preprocessing, device
        self.network = network.to(device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, inputs: Greys, batch_size: int) -> NDArray[np.float32]:
        full = np.zeros((batch_size, *inputs.shape[1:]), dtype=np.float16)
        full[: len(inputs)] = inputs
        images = torch.from_numpy(full).to(self._device, non_blocking=True)  # (B, size, size)
        network_input = self._preprocessing.tensor(images).contiguous(memory_format=torch.channels_last)  # (B, C, s, s)
        with self._autocast():
            logits: Tensor = self.network(network_input)  # (B, findings)
        return logits.float().cpu().numpy()[: len(inputs)]

    def _autocast(self) -> Any:
        return torch.autocast("cuda", dtype=torch.float16) if self._device.type == "cuda" else nullcontext()
