"""SOURCE of the command line: `package.module:factory` or `file.py:factory`.

A factory takes no arguments and returns `(module, example_inputs)`. It runs code by design, so it is
only ever taken from the command line or from Python, never from a manifest.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from onnxft.errors import ModelError, near


def load_factory(source: str) -> tuple[Any, Any]:
    """Call the factory named by `source`.

    Returns:
        (torch.nn.Module, example inputs as a tuple or {name: tensor}).

    Raises:
        ModelError: the module, the file or the factory does not exist, it raises, or it returns something else.
    """
    place, colon, name = source.rpartition(":")
    if not colon or not place or not name:
        raise ModelError(f"SOURCE '{source}' is not of the form 'package.module:factory' or 'file.py:factory'.")
    module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place)
    factory = getattr(module, name, None)
    if not callable(factory):
        functions = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise ModelError(f"'{place}' has no function '{name}'.{near(name, functions)}")
    try:
        result = factory()
    except Exception as err:
        raise ModelError(f"the factory '{source}' raised {type(err).__name__}: {err}") from err
    if not isinstance(result, tuple) or len(result) != 2:
        raise ModelError(f"the factory '{source}' must return (module, example_inputs), not {type(result).__name__}.")
    return result


def _load_module(name: str) -> Any:
    # As `python -m` does: the user's own modules lie in the working directory.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except Exception as err:
        raise ModelError(f"module '{name}' cannot be imported: {type(err).__name__}: {err}") from err


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise ModelError(f"the file '{path}' does not exist.")
    spec = importlib.util.spec_from_file_location(f"onnxft_source_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    # A factory beside its helpers may import them by name.
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as err:
        raise ModelError(f"'{path}' cannot be run: {type(err).__name__}: {err}") from err
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module
