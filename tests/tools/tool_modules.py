"""Tools, which are scripts beside the package, as modules."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@contextmanager
def imported(name: str, *prefixes: str) -> Iterator[ModuleType]:
    """A tool; afterwards the modules whose names begin with the prefixes are forgotten."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOLS))
        yield importlib.import_module(name)
        for module in [module for module in sys.modules if module.startswith(prefixes)]:
            sys.modules.pop(module)
