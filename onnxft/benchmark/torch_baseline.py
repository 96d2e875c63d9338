"""The torch baselines: the same step in PyTorch, eager or compiled, in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from onnxft.arrays import Array
from onnxft.benchmark.config import BenchConfig
from onnxft.benchmark.exchange import Measurement, Request
from onnxft.benchmark.gpu_memory import gpu_bytes
from onnxft.benchmark.peaks import measure_peaks
from onnxft.benchmark.scenario import Times, measure
from onnxft.benchmark.torch_adapters import add_adapters
from onnxft.benchmark.torch_model import (
    Tensors,
    TorchModel,
    load_initial_values,
    select_trainables,
    tensors,
    train_statistics,
)
from onnxft.benchmark.torch_probe import torch_operators, torch_peaks
from onnxft.errors import ModelError
from onnxft.manifest import Manifest, Optimizer
from onnxft.memory import peak_resident_bytes
from onnxft.runtime.artifact import load_artifact
from onnxft.runtime.providers import first_line
from onnxft.runtime.rates import by_group

COMPILED = "torch-compile"
NVIDIA = ("cuda", "tensorrt", "nv-tensorrt-rtx")
"""Providers whose device torch can run on too."""


def run(request: Request) -> tuple[Measurement, dict[str, Array]]:
    """Measure torch; the measurement, and {parameter: gradient} or {output: array} at the initial parameters.

    ModelError where the source is not the model that was exported, or torch cannot compile it; ProviderError where the
    artifact has adapters and peft is missing.
    """
    torch.set_num_threads(request.threads)
    device = choose_device(request.config)
    if device.type == "cuda":
        # As the runtime's CUDA provider is set: no TF32, and the fastest algorithm of each convolution searched once.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
    side = _Training(request, device) if request.config.trains else _Inference(request, device)
    with _explained():
        times = measure(side.step, request.config)
    peak, gpu = peak_resident_bytes(), gpu_bytes()
    loss, arrays = side.result(times)
    options = {"device": str(device)} | ({"autocast": "bfloat16"} if request.side.precision == "bfloat16" else {})
    if device.type == "cuda":
        options["device"] += f" ({torch.cuda.get_device_name(device)})"
    measurement = Measurement(
        provider_requested=request.side.runs,
        provider_obtained=request.side.runs,
        nodes={},
        fallback_nodes=None,
        versions={"torch": str(torch.__version__)},
        build_seconds=side.build_seconds,
        first_step_seconds=times.first_step,
        warmup_seconds=times.warmup,
        step_seconds=times.steps,
        peak_rss_bytes=peak,
        loss=loss,
        options=options,
        precision=request.side.precision,
        peak_gpu_bytes=gpu,
        # After the steps and the reading of the memory, so that they disturb neither.
        peaks=measure_peaks(lambda: torch_peaks(request.threads, request.side.precision, device)),
        operators=torch_operators(side.step) if request.config.profile else (),
    )
    return measurement, {name: array.detach().float().cpu().numpy() for name, array in arrays.items()}


def choose_device(config: BenchConfig) -> torch.device:
    """The same GPU where a provider of the benchmark runs on NVIDIA's and torch can too; else the CPU."""
    on_gpu = any(side.runs in NVIDIA for side in config.sides) and torch.cuda.is_available()
    return torch.device("cuda", config.device or 0) if on_gpu else torch.device("cpu")


class _Side:
    """The source with the artifact's values on a device, and the batch in the memory of the host."""

    def __init__(self, request: Request, device: torch.device) -> None:
        self.request, self.device = request, device
        self.artifact = Path(request.artifact)
        self.manifest = load_artifact(self.artifact)
        self.batch = tensors(self.manifest, request.batch_size, request.config.seed)
        start = time.perf_counter()
        self.model = TorchModel(str(request.config.source), self.manifest)
        add_adapters(self.model.module, self.manifest)
        self.model.module.to(device)
        self.build()
        self.build_seconds = time.perf_counter() - start

    def build(self) -> None:
        """What is made once."""
        load_initial_values(self.model.module, self.manifest, self.artifact)

    def call(self, function: Callable[[Tensors], Any]) -> Any:
        """`function` of the batch on the device, in the precision of the side.

        The copy is part of the step, as a session is given arrays of the host too.
        """
        on_device = {name: value.to(self.device) for name, value in self.batch.items()}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.request.side.precision == "bfloat16"):
            return function(on_device)

    def compiled(self, function: Callable[[Tensors], Any]) -> Callable[[Tensors], Any]:
        """`function`, compiled at its first call where the side is."""
        return torch.compile(function, dynamic=False) if self.request.side.runs == COMPILED else function


class _Training(_Side):
    def build(self) -> None:
        """Trainables, values and optimizer."""
        self.parameters = select_trainables(self.model.module, self.manifest)
        train_statistics(self.model.module, self.manifest)
        super().build()
        lr, compiled = self.request.config.lr, self.request.side.runs == COMPILED
        groups = parameter_groups(self.parameters, self.manifest, lr)
        # One kernel for all parameters, as a compiled step would be, without waiting for the compiler.
        self.optimizer = build_optimizer(groups, self.manifest.optimizer, lr, fused=compiled)
        self.loss = self.compiled(self.model.loss)

    def step(self) -> float:
        """One optimizer step; the loss before it."""
        loss = self._backward()
        self.optimizer.step()
        return float(loss.item())

    def result(self, times: Times) -> tuple[float, dict[str, torch.Tensor]]:
        """The loss of the first step, and the gradients at the initial parameters."""
        load_initial_values(self.model.module, self.manifest, self.artifact)
        self._backward()
        # A parameter that the loss does not depend on has no gradient in torch and a zero one in a graph.
        found = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in self.parameters.items()}
        return times.loss, found

    def _backward(self) -> torch.Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss: torch.Tensor = self.call(self.loss)
        loss.backward()
        return loss


class _Inference(_Side):
    def build(self) -> None:
        """The values, and the outputs as one function."""
        super().build()
        self.outputs = self.compiled(self.model.outputs)

    def step(self) -> float:
        """One prediction, its outputs in the memory of the host; no loss is computed."""
        self._predict()
        return 0.0

    def result(self, times: Times) -> tuple[float, dict[str, torch.Tensor]]:
        """The loss, and the outputs with a row for each of the batch."""
        with torch.no_grad():
            loss = float(self.call(self.model.loss).item())
        return loss, {name: value for name, value in self._predict().items() if value.ndim}

    def _predict(self) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return {name: value.cpu() for name, value in self.call(self.outputs).items()}


@contextmanager
def _explained() -> Iterator[None]:
    """A compiler that fails or is not there as a ModelError."""
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as err:
        if "InvalidCxxCompiler" in str(err):
            raise ModelError(
                "torch.compile finds no working C++ compiler here. Install one (g++ or clang++) or name it in the "
                "environment variable CXX."
            ) from err
        reason = first_line(getattr(err, "inner_exception", err))  # of a backend that failed: what it raised
        raise ModelError(f"torch.compile does not compile the model: {reason}. Use --baseline torch.") from err


def parameter_groups(
    parameters: Mapping[str, torch.nn.Parameter], manifest: Manifest, lr: float
) -> list[dict[str, Any]]:
    """The artifact's groups with the rates that a session gives them."""
    rates, decays = by_group(manifest, lr, None)
    members = {g: [parameters[p.name] for p in manifest.parameters if p.group == g] for g in manifest.groups}
    return [{"params": members[g], "lr": rates[g], "weight_decay": decays[g]} for g in manifest.groups]


def build_optimizer(
    groups: list[dict[str, Any]] | list[torch.nn.Parameter], optimizer: Optimizer, lr: float, *, fused: bool = False
) -> torch.optim.Optimizer:
    """The manifest's optimizer in torch; ModelError for an option that it would ignore."""
    options = dict(optimizer.options)
    arguments: dict[str, Any] = {"lr": lr, "weight_decay": optimizer.weight_decay}
    kind: type[torch.optim.Optimizer]
    match optimizer.kind:
        case "adam" | "adamw":
            kind = torch.optim.AdamW if optimizer.kind == "adamw" else torch.optim.Adam
            arguments |= {
                "betas": (options.pop("beta1", 0.9), options.pop("beta2", 0.999)),
                "eps": options.pop("eps", 1e-8),
            }
        case "sgd":
            kind = torch.optim.SGD
            arguments |= {"momentum": options.pop("momentum", 0.0), "nesterov": bool(options.pop("nesterov", 0.0))}
        case _:
            raise ModelError(f"torch has no optimizer '{optimizer.kind}'. Benchmark without torch.")
    if options:
        raise ModelError(
            f"the torch baseline does not know the option(s) {', '.join(sorted(options))} of the optimizer "
            f"'{optimizer.kind}': the work would differ. Benchmark without torch."
        )
    return kind(groups, **arguments, fused=True if fused else None)
