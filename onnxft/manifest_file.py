"""`manifest.json`: reading validates types (msgspec), then what types cannot say (`manifest_check.py`)."""

from __future__ import annotations

from pathlib import Path

import msgspec

from onnxft.errors import ArtifactError
from onnxft.manifest import FILE_NAME, SCHEMA_VERSION, Manifest
from onnxft.manifest_check import problems


def read_manifest(directory: Path) -> Manifest:
    """That of an artifact directory; ArtifactError where it is missing or does not fit."""
    path = directory / FILE_NAME
    if not path.is_file():
        hint = "the directory does not exist" if not directory.is_dir() else f"it holds no {FILE_NAME}"
        raise ArtifactError(f"'{directory}' is not an artifact: {hint}. Make one with `onnxft export`.")
    return parse_manifest(path.read_bytes(), str(path))


def parse_manifest(data: bytes, where: str = FILE_NAME) -> Manifest:
    """Decode and check; ArtifactError names the field that does not fit."""
    try:
        values = msgspec.json.decode(data)
        version = values.get("schema_version") if isinstance(values, dict) else None
        if version != SCHEMA_VERSION:
            raise ArtifactError(
                f"{where} has schema version {version!r}; this onnxft reads version {SCHEMA_VERSION}. "
                "Export the artifact again, or install the onnxft release that wrote it."
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, RecursionError) as err:
        raise ArtifactError(f"{where} is not a manifest of onnxft: {err}. Export the artifact again.") from err
    check_manifest(manifest, where)
    return manifest


def check_manifest(manifest: Manifest, where: str = FILE_NAME) -> None:
    """ArtifactError unless its parts fit each other."""
    for problem in problems(manifest):
        raise ArtifactError(f"{where}: {problem}. Export the artifact again.")


def manifest_json(manifest: Manifest) -> bytes:
    """Indented JSON."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1)
