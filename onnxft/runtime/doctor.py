"""Which providers really run here: each one opens a session, multiplies two matrices, and is checked."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata

import numpy as np

import onnxft
from onnxft.errors import ProviderError
from onnxft.runtime.engine import Placement
from onnxft.runtime.providers import PROVIDERS, first_line, runtime
from onnxft.runtime.sessions import open_session

# y = MatMul(x, w) with x (2, 3), w (3, 4) and y (2, 4), float32, as the run half has no onnx package to build it.
# To make it again: onnx.helper.make_model(make_graph([make_node("MatMul", ["x", "w"], ["y"])], "probe", ...),
# ir_version=10, producer_name="", opset_imports=[make_opsetid("", 18)]).SerializeToString(). One field a line:
PROBE_MODEL = (
    b"\x08\n\x12\x00:Y"  # IR version 10, no producer, a graph of 89 bytes
    b'\n\x11\n\x01x\n\x01w\x12\x01y"\x06MatMul'  # node
    b"\x12\x05probe"  # name of the graph
    b"Z\x13\n\x01x\x12\x0e\n\x0c\x08\x01\x12\x08\n\x02\x08\x02\n\x02\x08\x03"  # input x (2, 3)
    b"Z\x13\n\x01w\x12\x0e\n\x0c\x08\x01\x12\x08\n\x02\x08\x03\n\x02\x08\x04"  # input w (3, 4)
    b"b\x13\n\x01y\x12\x0e\n\x0c\x08\x01\x12\x08\n\x02\x08\x02\n\x02\x08\x04"  # output y (2, 4)
    b"B\x04\n\x00\x10\x12"  # opset 18
)


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor found out about one provider."""

    provider: str
    works: bool
    message: str
    """What runs; or why it does not, and what would make it work."""


@dataclass(frozen=True)
class Installation:
    """The environment that the diagnosis was made in."""

    versions: dict[str, str]
    """{package: version}, Python and the system included."""
    runtime_packages: dict[str, str]
    """{package: version} of all that install the module `onnxruntime`."""
    problems: tuple[str, ...]
    """What is wrong and how to mend it."""


def diagnose() -> list[Diagnosis]:
    """Try every provider of the table, in its order; a provider that fails is a diagnosis, never an error."""
    return [_diagnose(name) for name in PROVIDERS]


def open_probe(provider: str) -> Placement:
    """Run the probe on a provider and check its result.

    Raises:
        ProviderError: the provider is absent, does not load, fails, or multiplies wrongly.
    """
    rng = np.random.Generator(np.random.Philox(0))
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 3), (3, 4)))
    opened = open_session(PROBE_MODEL, provider, threads=1)
    try:
        (y,) = opened.session.run(["y"], {"x": x, "w": w})
    except Exception as err:  # the runtime raises its own classes, one a status code
        raise ProviderError(
            f"provider '{provider}' opens but does not run: {first_line(err)}. "
            f"Reinstall it: {opened.provider.how_to_install}."
        ) from err
    difference = float(np.abs(y - x @ w).max())
    # bfloat16 or TF32, which the options switch off, would differ by 1e-3 and more.
    if not difference < 1e-5:
        raise ProviderError(
            f"provider '{provider}' multiplies two matrices with an error of {difference:.1e}: it does not compute in "
            "float32. Update its package and driver, or use another provider."
        )
    placement = Placement(
        requested=provider,
        obtained=opened.provider.name,
        nodes={"infer": opened.nodes} if opened.nodes else {},
        options=opened.options,
        versions={"onnxruntime": runtime().__version__},
    )
    opened.close()
    return placement


def inspect_installation(path: Sequence[str] | None = None) -> Installation:
    """Versions, and runtimes that overwrite each other; `path` as in `sys.path`, None for this environment's."""
    packages = _runtime_packages(path)
    versions = {"onnxft": onnxft.__version__, "python": platform.python_version(), "system": platform.platform()}
    return Installation(versions | {"numpy": np.__version__}, packages, tuple(_problems(packages)))


def _diagnose(name: str) -> Diagnosis:
    try:
        placement = open_probe(name)
    except ProviderError as err:
        return Diagnosis(name, False, str(err))
    version = placement.versions["onnxruntime"]
    return Diagnosis(name, True, f"runs {PROVIDERS[name].runtime_name} of onnxruntime {version}")


def _runtime_packages(path: Sequence[str] | None) -> dict[str, str]:
    found = metadata.distributions() if path is None else metadata.distributions(path=list(path))
    return {
        d.name: d.version
        for d in found
        if d.name.lower().startswith("onnxruntime")
        # Plug-ins and tools bear the name too, but stand beside a runtime.
        and any(file.parts[:2] == ("onnxruntime", "__init__.py") for file in d.files or ())
    }


def _problems(packages: dict[str, str]) -> list[str]:
    if len(packages) < 2:
        return []
    names = sorted(packages)
    return [
        f"{len(names)} runtimes are installed here ({', '.join(f'{n} {packages[n]}' for n in names)}). They all "
        "install the module 'onnxruntime' and overwrite each other's files: providers vanish, or the module breaks. "
        f"Remove all and install the one you need again: `pip uninstall -y {' '.join(names)}`, then "
        f"`pip install {names[0]}` or another. Use one environment for each runtime."
    ]
