"""Opening an artifact directory: every file is the one that was written, before the runtime reads any."""

from __future__ import annotations

from pathlib import Path

from onnxft.errors import ArtifactError
from onnxft.files import sha256
from onnxft.manifest import Manifest


def load_artifact(directory: Path) -> Manifest:
    """Read the manifest and check every file against it.

    Raises:
        ArtifactError: a file is missing, a link, or does not match its sha256.
    """
    manifest = Manifest.load(directory)
    for name, expected in manifest.files.items():
        check_regular(directory / name)
        if sha256(directory / name) != expected:
            raise ArtifactError(
                f"'{directory / name}' does not match its sha256: it was changed or only partly copied. "
                "Copy or export the artifact again."
            )
    return manifest


def check_regular(path: Path) -> None:
    """ArtifactError unless `path` is a regular file with one name (links may lead out of the directory)."""
    if not path.exists():
        raise ArtifactError(f"'{path}' is missing. Copy or export the artifact again.")
    if path.is_symlink() or not path.is_file() or path.stat().st_nlink != 1:
        raise ArtifactError(f"'{path}' is a link or no regular file; onnxft reads only plain files of an artifact.")
