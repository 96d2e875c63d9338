"""SOURCE of the command line: `package.module:factory` or `file.py:factory`.

A factory takes no arguments and returns `(module, example_inputs)`. It runs code by design, so it is
only ever taken from the command line or from Python, never from a manifest.
"""

from __future__ import annotations

from typing import Any

from onnxft.errors import ModelError
from onnxft.named_code import named_object


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
    factory = named_object(source, "function", ModelError)
    if not callable(factory):
        raise ModelError(f"'{source}' is no function, but {type(factory).__name__}.")
    try:
        result = factory()
    except Exception as err:
        raise ModelError(f"the factory '{source}' raised {type(err).__name__}: {err}") from err
    if not isinstance(result, tuple) or len(result) != 2:
        raise ModelError(f"the factory '{source}' must return (module, example_inputs), not {type(result).__name__}.")
    return result
