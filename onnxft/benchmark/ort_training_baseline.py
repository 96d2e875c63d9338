"""The artifact of the baseline `ort-training`: the model, trainables and optimizer of another, through its generator.

This half needs the build half of onnxft and the model's source; what it writes is measured as any artifact is, in the
environment that has onnxruntime-training.
"""

from __future__ import annotations

import glob
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxft.benchmark.config import ORT_TRAINING
from onnxft.benchmark.exchange import Request
from onnxft.benchmark.torch_model import TorchModel, load_initial_values, select_trainables, tensors
from onnxft.errors import ConfigError, ModelError, ProviderError
from onnxft.manifest import Manifest, ParameterGroup
from onnxft.runtime.artifact import load_artifact
from onnxft.runtime.random_batch import draws_random_numbers


def generate(request: Request, directory: Path) -> None:
    """Write the artifact of the request's source for its batch size.

    Raises:
        ConfigError: the artifact's parameters have rates or decays of their own.
        ModelError: the source is not the model that was exported, or what was generated trains otherwise.
        GradientError: onnxruntime-training cannot express the model or its loss.
        ProviderError: the environment does not have it.
    """
    from onnxft import api

    artifact = Path(request.artifact)
    manifest = load_artifact(artifact)
    if any(group != ParameterGroup(group.name) for group in manifest.parameter_groups):
        raise ConfigError(
            "onnxruntime-training has one learning rate and one decay for all parameters, and this artifact has "
            "groups with their own. Benchmark without it, or export without groups."
        )
    model = TorchModel(str(request.config.source), manifest)
    # Adapters are added to the exported graph, as they were to that of the artifact.
    own = replace(manifest, parameters=tuple(p for p in manifest.parameters if p.origin == "model"))
    select_trainables(model.module, own)
    load_initial_values(model.module, manifest, artifact)
    examples = model.inputs(tensors(manifest, request.batch_size, request.config.seed))
    planned = api.plan(
        model.module,
        examples,
        trainable=[glob.escape(p.name) for p in own.parameters],
        **_lora(manifest),
        train_batchnorm=sorted({glob.escape(b.layer) for b in manifest.buffers}),
        loss=manifest.loss.kind,
        loss_output=manifest.loss.output,
        input_names=model.input_names,
        output_names=model.output_names,
        dropout=draws_random_numbers(manifest),
        name=manifest.name,
    )
    same = api.Plan(planned.forward, planned.selection, manifest.loss, manifest.optimizer)
    python = request.config.interpreter(request.side)
    try:
        made = same.write(directory, batch_size=request.batch_size, generator="ort-training", python=python)
    except ProviderError as err:
        raise ProviderError(f"{err} For the benchmark, name it as --python {ORT_TRAINING}=PATH.") from err
    check_same_work(made, manifest)


def _lora(manifest: Manifest) -> dict[str, Any]:
    """The options of an export that add the artifact's adapters: those of one method are of one kind."""
    for a, _ in manifest.adapters.values():
        assert a.merge is not None
        return {
            "method": f"lora:{a.shape[0]}",
            "lora_targets": [glob.escape(target) for target in manifest.adapters],
            "lora_alpha": a.merge.alpha,
            "lora_dropout": a.merge.dropout,
        }
    return {}


def check_same_work(made: Manifest, manifest: Manifest) -> None:
    """ModelError where two artifacts train different parameters, or by another loss or optimizer."""
    trained, wanted = ({p.name: (p.shape, p.merge) for p in m.parameters} for m in (made, manifest))
    for what, same in (
        (f"parameters ({', '.join(sorted({*trained} ^ {*wanted})) or 'of other shapes'})", trained == wanted),
        ("loss", made.loss == manifest.loss),
        ("optimizer", made.optimizer == manifest.optimizer),
    ):
        if not same:
            raise ModelError(
                f"what onnxruntime-training would train has other {what} than the artifact: the work would differ. "
                "Give the --source that the artifact was exported from."
            )
