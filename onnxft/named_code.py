"""Objects named by `package.module:name` or `file.py:name`.

Importing runs code by design, so such a name is only ever taken from the command line or from Python, never from a
file: not from a manifest, a configuration or a run.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from onnxft.errors import OnnxftError, near


def names_code(text: str) -> bool:
    """Whether a text has the form of a name, and is no file or directory.

    >>> names_code("rows.py:batches"), names_code("train.npz"), names_code("C:/data")
    (True, False, False)
    """
    place, colon, name = text.rpartition(":")
    return bool(place and colon) and name.isidentifier() and not Path(text).exists()


def named_object(text: str, what: str, error: type[OnnxftError]) -> Any:
    """Import what is named; `error` says what does not exist or cannot be run, `what` is its kind for messages."""
    place, _, name = text.rpartition(":")
    module = _load_file(Path(place), error) if place.endswith(".py") else _load_module(place, error)
    if (found := getattr(module, name, None)) is None:
        functions = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise error(f"'{place}' has no {what} '{name}'.{near(name, functions)}")
    return found


def _load_module(name: str, error: type[OnnxftError]) -> Any:
    # As `python -m` does: the user's own modules lie in the working directory.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except Exception as err:
        raise error(f"module '{name}' cannot be imported: {type(err).__name__}: {err}") from err


def _load_file(path: Path, error: type[OnnxftError]) -> Any:
    if not path.is_file():
        raise error(f"the file '{path}' does not exist.")
    spec = importlib.util.spec_from_file_location(f"onnxft_source_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    # A factory beside its helpers may import them by name.
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as err:
        raise error(f"'{path}' cannot be run: {type(err).__name__}: {err}") from err
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module
