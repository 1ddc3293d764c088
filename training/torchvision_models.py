"""torchvision's classifiers, imported without torch's compiler: 1.4 s of processor time less in every process.

torchvision.ops.roi_align, which no classifier uses, takes a function from torch._dynamo when it is imported, and that
brings the whole compiler with sympy. While torchvision is imported a stand-in takes its place; whoever wants the
compiler later imports the real one.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

import torch

_COMPILER = "torch._dynamo"


def _missing(name: str) -> Callable[..., bool]:
    """Any function of the compiler that is asked for by name: it answers no."""
    if name.startswith("__"):
        raise AttributeError(name)
    return lambda *_: False


@contextmanager
def _stand_in() -> Iterator[None]:
    """A module in the compiler's place, where that has not been imported yet."""
    if _COMPILER in sys.modules or "torchvision" in sys.modules:
        yield
        return
    stand_ins = {name: ModuleType(name) for name in (_COMPILER, f"{_COMPILER}.utils")}
    for module in stand_ins.values():
        module.__getattr__ = _missing  # type: ignore[method-assign]
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]
        vars(torch).pop("_dynamo", None)


with _stand_in():
    from torchvision import models as models
