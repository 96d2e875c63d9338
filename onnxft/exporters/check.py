"""What was exported equals the module: names, values, ties, and outputs at two batch sizes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from onnxft.errors import ModelError, ProviderError
from onnxft.exporters.compare import compare
from onnxft.exporters.feeds import fit_inputs
from onnxft.graph.forward import Forward, Tensor
from onnxft.graph.io import save_inference
from onnxft.manifest import BATCH
from onnxft.runtime.providers import first_line
from onnxft.runtime.sessions import open_session


def check_tensors(module: nn.Module, graph: ir.Graph, tensors: Mapping[str, Tensor], read: set[str]) -> None:
    """Every tensor that the program reads is an initializer under its own name with its own value, and read.

    Exporters have merged equal tensors, folded normalisation into weights and stored renamed copies;
    training such a graph would tie or lose parameters without a word.

    Raises:
        ModelError: a tensor is missing, not read, or has another shape, type or value.
    """
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for tensor in tensors.values():
        if not read & {tensor.name, *tensor.tied_to}:
            continue
        value = graph.initializers.get(tensor.name)
        if value is None or value.const_value is None:
            raise ModelError(
                f"the export lost '{tensor.name}': the model reads it, but the graph has no initializer of that name "
                "(merged with an equal one, or folded). Please report this with the torch version "
                f"{torch.__version__}."
            )
        if not value.uses():
            raise ModelError(
                f"the export lost '{tensor.name}': the model reads it, but another initializer stands for it in the "
                f"graph. Please report this with the torch version {torch.__version__}."
            )
        exported, own = value.const_value.numpy(), state[tensor.name].detach().cpu().numpy()
        if exported.dtype != own.dtype or not np.array_equal(exported, own, equal_nan=own.dtype.kind == "f"):
            values = " with other values" if exported.shape == own.shape else ""
            raise ModelError(
                f"the export changed '{tensor.name}': shape {list(own.shape)} {own.dtype} became "
                f"{list(exported.shape)} {exported.dtype}{values}. "
                f"Please report this with the torch version {torch.__version__}."
            )


def check_outputs(
    forward: Forward,
    module: nn.Module,
    examples: Mapping[str, torch.Tensor],
) -> None:
    """The inference graph computes what the module computes, for the example and for another batch size.

    Where further dimensions are symbolic, the other batch is shorter along them. The tolerance is 1e-3
    (float32) or 1e-9 (float64) of the largest output: rounding passes, a wrong graph does not.

    Raises:
        ModelError: an output differs, or the graph does not take another size.
    """
    rows = len(next(iter(examples.values())))
    report = f"Please report it with the torch version {torch.__version__}."
    with TemporaryDirectory() as folder:
        path = Path(folder) / "infer.onnx"
        save_inference(forward.infer, path)
        try:
            opened = open_session(path)
        except ProviderError as err:
            double = any(t.dtype == "float64" for t in forward.tensors)
            hint = " Export it in float32: module.float()." if double else ""
            raise ModelError(f"the exported graph cannot be checked against torch: {err}{hint}") from err
        arrays, whole = {n: v.cpu().numpy() for n, v in examples.items()}, dict(forward.dimensions)
        for size, sizes in ((rows, whole), (rows + 1, {d: n - max(n // 3, 1) for d, n in whole.items()})):
            feeds = fit_inputs(arrays, forward.infer.graph.inputs, {BATCH: size, **sizes})
            batch = {n: torch.tensor(v) for n, v in zip(examples, feeds.values(), strict=True)}
            where = ", ".join([f"batch {size}", *(f"{d} {n}" for d, n in sizes.items())])
            try:
                with torch.no_grad():
                    expected = tensors_of(module(**batch))
            except Exception as err:
                raise ModelError(f"the model itself does not run with {where}: {first_line(err)}") from err
            try:
                found = opened.session.run(list(forward.outputs), feeds)
            except Exception as err:  # the runtime raises its own classes, one a status code
                raise ModelError(f"the exported graph does not run with {where}: {first_line(err)}") from err
            for name, own, other in zip(forward.outputs, found, expected, strict=True):
                compare(name, own, other.numpy(), f"with {where}", "torch", report)
        opened.close()


def tensors_of(value: Any) -> list[torch.Tensor]:
    """The tensors of a module's result in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if value is None:
        return []
    values = value.values() if isinstance(value, Mapping) else value
    return [tensor for item in values for tensor in tensors_of(item)]
