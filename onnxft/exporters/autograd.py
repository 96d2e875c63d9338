"""What torch's autograd says of a module and a graph does not: where gradients are cut off, or made in another way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode

from onnxft.errors import ModelError
from onnxft.exporters.check import tensors_of
from onnxft.runtime.providers import first_line


@dataclass(frozen=True)
class Seen:
    """What one forward run of a module showed."""

    reached: frozenset[str]
    """Floating-point parameters from which an output is reached; requires_grad=False does not count."""
    notes: tuple[str, ...]
    """Where the gradient of the exported graph is another than torch's."""


def look(module: nn.Module, examples: Mapping[str, torch.Tensor]) -> Seen:
    """Run a module in its present mode and follow its gradients.

    A parameter that is read under `torch.no_grad`, or detached everywhere, is not reached. Where intermediate values
    are detached, or a `torch.autograd.Function` has a backward of its own, a note says so: the exported graph is
    differentiated as it stands.

    Raises:
        ModelError: the module does not run, or torch cannot differentiate it.
    """
    try:
        return _look(module, examples)
    except Exception as err:
        raise ModelError(f"the model does not run on its example inputs: {first_line(err)}.") from err


def _look(module: nn.Module, examples: Mapping[str, torch.Tensor]) -> Seen:
    named = {n: p for n, p in module.named_parameters() if p.is_floating_point()}
    with _all_trainable(list(named.values())), torch.enable_grad():
        with _Cuts() as cuts:
            outputs = [t for t in tensors_of(module(**examples)) if t.requires_grad]
        if not outputs:
            return Seen(frozenset(), ())
        own = sorted(_own_backwards(outputs))
        found = torch.autograd.grad([t.sum() for t in outputs], list(named.values()), allow_unused=True)
    reached = frozenset(name for name, gradient in zip(named, found, strict=True) if gradient is not None)
    notes = [f"the model gives {name} a backward of its own; here the gradient is that of its forward" for name in own]
    # The forward of such a function runs under torch.no_grad itself, which is not told from the model's own.
    if how := ", ".join(sorted(cuts.found - ({"torch.no_grad"} if own else set()))):
        notes.append(f"the model cuts gradients off intermediate values ({how}); here they flow through")
    return Seen(reached, tuple(notes))


class _Cuts(TorchFunctionMode):  # type: ignore[misc]
    """Notes how values that depend on parameters leave autograd; a parameter that is cut off itself is not reached."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [a for a in args if isinstance(a, torch.Tensor)]
        if any(a.grad_fn is not None for a in given) and _is_cut(result):
            if not torch.is_grad_enabled():
                self.found.add("torch.no_grad")
            elif func in (torch.Tensor.detach, torch.Tensor.data.__get__):
                self.found.add("Tensor.detach")
        return result


def _is_cut(result: Any) -> bool:
    return isinstance(result, torch.Tensor) and result.is_floating_point() and not result.requires_grad


def _own_backwards(outputs: Sequence[torch.Tensor]) -> set[str]:
    """Names of the functions behind `outputs` whose backward is written in Python."""
    stack, seen, found = [t.grad_fn for t in outputs], set(), set()
    while stack:
        function = stack.pop()
        if function is None or function in seen:
            continue
        seen.add(function)
        if isinstance(function, BackwardCFunction):
            found.add(type(function).__name__.removesuffix("Backward"))
        stack.extend(f for f, _ in function.next_functions)
    return found


@contextmanager
def _all_trainable(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    before = [p.requires_grad for p in parameters]
    try:
        for p in parameters:
            p.requires_grad_(True)
        yield
    finally:
        for p, trained in zip(parameters, before, strict=True):
            p.requires_grad_(trained)
