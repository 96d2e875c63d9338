"""A trained adapter as a folder: for peft, for ONNX Runtime, and to begin a run with.

adapter_config.json        what peft needs to know, and
adapter_model.safetensors  factors of the adapters and all else that was trained, for the original torch model
adapter.onnx_adapter       the same for ONNX Runtime's LoraAdapter and the artifact's graph `infer_adapter`
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from safetensors import safe_open

from onnxft.arrays import Array, Arrays
from onnxft.errors import ArtifactError, near
from onnxft.files import check_replaceable, new_directory
from onnxft.manifest import FROZEN_FILE, Manifest
from onnxft.runtime.adapters.onnx_adapter import read_onnx_adapter, write_onnx_adapter
from onnxft.runtime.adapters.peft import CONFIG_FILE, read_peft, why_not_peft, write_peft

ONNX_ADAPTER_FILE = "adapter.onnx_adapter"
_SUFFIX = ".onnx_adapter"


def write_adapter(directory: Path, manifest: Manifest, values: Arrays, path: Path) -> str:
    """Replace the folder `path` by an adapter with these `values` of all that is trained.

    Returns:
        Why there are no files for peft; "" where there are.

    Raises:
        ArtifactError: the artifact has no adapter, or `path` holds something else.
        ProviderError: the runtime here has no adapters.
    """
    _require_adapter(manifest)
    check_replaceable(path, ONNX_ADAPTER_FILE)
    own = identity(manifest)
    lacking = why_not_peft(manifest)
    # What inference does not read is no input of its graph.
    read = {name: values[name] for name in values if name not in {b.name for b in manifest.buffers if not b.inference}}
    with new_directory(path) as folder:
        write_onnx_adapter(folder / ONNX_ADAPTER_FILE, read, own)
        if not lacking:
            write_peft(folder, manifest, values, _frozen(directory, manifest), own)
    return lacking


def read_adapter(path: Path, manifest: Manifest) -> tuple[dict[str, Array], str]:
    """{parameter: value} of a folder of peft or a `.onnx_adapter` file, and the SHA-256 of what was read.

    Raises:
        ArtifactError: it is none, is damaged, or does not fit: another model, rank or scale, or other layers.
    """
    _require_adapter(manifest)
    if path.is_dir():
        values = read_peft(path, manifest, identity(manifest))
    elif path.suffix == _SUFFIX:
        values = read_onnx_adapter(path, manifest.name, identity(manifest))
    else:
        raise ArtifactError(f"'{path}' is no adapter. Name a folder with {CONFIG_FILE}, or a {_SUFFIX} file.")
    known = {t.name for t in manifest.weights}
    if unknown := sorted(values.keys() - known):
        raise ArtifactError(
            f"the adapter '{path}' has '{unknown[0]}', which is not trained in '{manifest.name}' and would be lost."
            f"{near(unknown[0], known)} Export with the same layers."
        )
    if missing := sorted({p.name for p in manifest.parameters if p.merge is not None} - values.keys()):
        raise ArtifactError(
            f"the adapter '{path}' has no '{missing[0]}', which '{manifest.name}' trains ({len(missing)} are missing). "
            "Export with the same layers: --lora-target."
        )
    digest = hashlib.sha256()
    for name, value in sorted(values.items()):
        digest.update(name.encode() + value.tobytes())
    return values, digest.hexdigest()


def identity(manifest: Manifest) -> str:
    """SHA-256 of what an adapter must find again: the frozen weights, the layers, their ranks and scales."""
    layers = [[p.name, p.shape, p.merge.alpha, p.merge.transposed] for p in manifest.parameters if p.merge is not None]
    base = manifest.files.get(FROZEN_FILE) or manifest.files[manifest.graph("infer").file]
    return hashlib.sha256(json.dumps([base, sorted(layers)]).encode()).hexdigest()


def _require_adapter(manifest: Manifest) -> None:
    if not manifest.adapters:
        raise ArtifactError(f"the artifact '{manifest.name}' has no adapter. Export it with --method lora.")


def _frozen(directory: Path, manifest: Manifest) -> set[str]:
    """Names of the frozen tensors, where the artifact has them in a file of their own."""
    if FROZEN_FILE not in manifest.files:
        return set()
    with safe_open(directory / FROZEN_FILE, "numpy") as file:
        return set(file.keys())
