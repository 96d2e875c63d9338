"""Optimized graphs that an artifact keeps: the same numbers in the same order, and never a stale or foreign one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import onnxft
from onnxft.errors import ProviderError
from onnxft.manifest import BATCH
from onnxft.manifest_file import read_manifest
from onnxft.runtime import graph_cache
from onnxft.runtime.execution import Execution
from onnxft.runtime.graph_cache import OPTION
from onnxft.runtime.random_batch import random_batch
from onnxft.runtime.session import TrainSession
from onnxft.runtime.sessions import open_session, profiling

Opened = Callable[..., Path]
BATCH_SIZE = 6


@pytest.fixture(autouse=True)
def secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture
def copied(exported: Opened, digits_source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Opened:
    """copied(model): an artifact of which small graphs are kept too; `narrow` has a trunk, its weights in float16."""
    monkeypatch.setattr(graph_cache, "MIN_BYTES", 0)

    def copy(model: str) -> Path:
        if model == "narrow":
            return onnxft.export(
                digits_source, directory=tmp_path / model, input_names=["image"], method="head",
                frozen_precision="float16",
            )  # fmt: skip
        return Path(shutil.copytree(exported(model), tmp_path / model))

    return copy


def opened(
    artifact: Path, *, threads: int | None = None, batch_size: int | None = None, **options: str
) -> TrainSession:
    """A session that keeps optimized graphs."""
    return TrainSession(artifact, threads=threads, batch_size=batch_size, provider_options={OPTION: "1", **options})


def kept(artifact: Path) -> set[Path]:
    return {*artifact.glob("cache/graphs/*.onnx*")}


def numbers(artifact: Path, **options: str) -> dict[str, bytes]:
    """Everything that two steps, a gradient and an evaluation of a short batch compute."""
    session = opened(artifact, threads=2, batch_size=BATCH_SIZE, **options)
    with session:
        batch = random_batch(session.manifest, BATCH_SIZE, seed=3)
        found = {f"loss {i}": np.float64(session.step(batch, lr=0.01).loss) for i in range(2)}
        found |= {f"gradient of {name}": g for name, g in session.gradients(batch).items()}
        found |= session.parameters
        found["evaluation"] = np.float64(session.evaluate({name: x[:4] for name, x in batch.items()}).loss)
    return {name: np.asarray(value).tobytes() for name, value in found.items()}


@pytest.mark.parametrize("model", ["mlp", "convnet", "efficientnet", "normed", "lstm_long", "narrow"])
def test_numbers_are_the_same_bit_for_bit(model: str, copied: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = copied(model)
    without = numbers(artifact, **{OPTION: "0"})
    assert not (artifact / "cache").exists()
    assert numbers(artifact) == without
    assert len(kept(artifact)) >= 3  # train, gradients, eval
    monkeypatch.setattr(graph_cache, "_kept", lambda *args: pytest.fail("a graph was optimized again"))
    assert numbers(artifact) == without


@pytest.mark.parametrize("model", ["convnet", "efficientnet", "normed"])
def test_nodes_are_executed_in_the_same_order(model: str, copied: Opened, tmp_path: Path) -> None:
    artifact = copied(model)
    manifest = read_manifest(artifact)
    graph = manifest.graph("gradients")

    def order(hashes: dict[str, str]) -> list[str]:
        with profiling(tmp_path / "profile"):
            session = open_session(
                artifact / graph.file,
                Execution(threads=1, options={OPTION: "1"}),
                dimensions={BATCH: BATCH_SIZE},
                hashes=hashes,
            ).session
        batch = random_batch(manifest, BATCH_SIZE, seed=3)
        types = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(bool)": np.bool_}
        session.run(None, {i.name: batch.get(i.name, np.ones(i.shape, types[i.type])) for i in session.get_inputs()})
        events = json.loads(Path(session.end_profiling()).read_text())
        return [e["name"] for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]

    expected = order({})
    assert len(expected) > 10
    assert order(manifest.files) == expected
    (path,) = kept(artifact)
    written = path.stat().st_mtime_ns
    assert order(manifest.files) == expected
    assert path.stat().st_mtime_ns > written  # read, and so used last


KEY = (Path("train.onnx"), {"train.onnx": "12", "frozen.safetensors": "34"}, ([("batch", 6)], "float32", ()))


@pytest.mark.parametrize(
    ("model", "hashes", "conditions"),
    [
        (Path("eval.onnx"), *KEY[1:]),
        (KEY[0], {**KEY[1], "train.onnx": "13"}, KEY[2]),
        (KEY[0], {**KEY[1], "frozen.safetensors": "35"}, KEY[2]),
        (*KEY[:2], ([("batch", 7)], "float32", ())),
        (*KEY[:2], ([("batch", 6)], "float16", ())),
        (*KEY[:2], ([("batch", 6)], "float32", ("GeluFusionL1",))),
    ],
    ids=["graph", "its contents", "weights", "dimensions", "frozen weights", "optimizations"],
)
def test_another_graph_or_condition_has_another_name(model: Path, hashes: dict[str, str], conditions: object) -> None:
    assert graph_cache._key(model, hashes, conditions) != graph_cache._key(*KEY)
    assert graph_cache._key(KEY[0], dict(reversed(KEY[1].items())), KEY[2]) == graph_cache._key(*KEY)


@pytest.mark.parametrize("change", ["runtime", "processor", "onnxft"])
def test_another_machine_or_version_has_another_name(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = graph_cache._key(*KEY)
    if change == "runtime":
        monkeypatch.setattr(graph_cache.runtime(), "__version__", "9.9")
    elif change == "processor":
        monkeypatch.setattr(graph_cache, "_processor", lambda: ("riscv64",))
    else:
        monkeypatch.setattr(graph_cache, "__version__", "9.9")
    assert graph_cache._key(*KEY) != before


def test_each_batch_size_is_kept_whatever_the_threads(copied: Opened) -> None:
    artifact = copied("mlp")
    for batch_size, threads, expected in ((4, 1, 1), (4, 2, 1), (5, 2, 2)):
        opened(artifact, batch_size=batch_size, threads=threads).close()
        assert len(kept(artifact)) == expected


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def changed(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def another(path: Path) -> None:
    """A graph of this user, under the name of this one."""
    other = next(p for p in path.parent.glob("*.onnx") if p != path)
    shutil.copy(other, path)


@pytest.mark.parametrize("damage", [cut, changed, another, lambda path: path.write_bytes(b"")])
def test_a_damaged_graph_is_made_anew_and_said_once(
    damage: Callable[[Path], object], copied: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    artifact = copied("mlp")
    opened(artifact, batch_size=BATCH_SIZE).close()
    (path,) = kept(artifact)
    expected = numbers(artifact)
    damage(path)
    said = [f"'{path}', kept for 'train.onnx', is damaged: it is made anew."]
    for _ in range(2):
        assert numbers(artifact) == expected
        assert [r.message for r in caplog.records if r.name == graph_cache.__name__] == said


def test_graphs_of_somebody_else_are_removed(copied: Opened, tmp_path: Path) -> None:
    artifact = copied("mlp")
    opened(artifact, batch_size=4).close()
    before = kept(artifact)
    shutil.rmtree(tmp_path / "home")
    opened(artifact, batch_size=5).close()
    assert len(kept(artifact)) == 1
    assert not kept(artifact) & before


def test_a_directory_without_a_cache_trains_too_and_says_so(copied: Opened, caplog: pytest.LogCaptureFixture) -> None:
    artifact = copied("mlp")
    expected = numbers(artifact, **{OPTION: "0"})
    (artifact / "cache").write_text("a file")
    assert numbers(artifact) == expected
    said = [r.message for r in caplog.records if r.name == graph_cache.__name__]
    assert said[0].startswith("'train.onnx' is opened without a kept graph: ")


def test_nothing_is_kept_unless_asked_for(copied: Opened) -> None:
    artifact = copied("mlp")
    TrainSession(artifact).close()
    assert not (artifact / "cache").exists()


def test_small_graphs_are_not_kept(exported: Opened, tmp_path: Path) -> None:
    artifact = Path(shutil.copytree(exported("mlp"), tmp_path / "mlp"))
    opened(artifact).close()
    assert not (artifact / "cache").exists()


def test_what_was_used_last_is_kept_within_the_bound(copied: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = copied("mlp")
    names = {}
    for batch_size in (4, 5):
        before = kept(artifact)
        opened(artifact, batch_size=batch_size).close()
        (names[batch_size],) = kept(artifact) - before
    os.utime(names[5], (1, 1))
    os.utime(names[4], (2, 2))
    left_by_a_killed_process = names[4].with_name(".x.onnx.1.part")
    left_by_a_killed_process.write_bytes(bytes(10))
    os.utime(left_by_a_killed_process, (1, 1))
    monkeypatch.setattr(graph_cache, "MAX_BYTES", names[4].stat().st_size * 5 // 2)
    opened(artifact, batch_size=7).close()
    assert len(kept(artifact)) == 2
    assert names[4] in kept(artifact)
    monkeypatch.setattr(graph_cache, "MAX_BYTES", 10)
    opened(artifact, batch_size=8).close()
    assert not kept(artifact)


@pytest.mark.parametrize("value", ["", "no", "2"])
def test_the_option_is_0_or_1(value: str, exported: Opened) -> None:
    with pytest.raises(ProviderError, match=f"graph_cache_enable is '{value}'; it is 0 or 1"):
        TrainSession(exported("mlp"), provider_options={OPTION: value})


def test_processes_that_open_one_artifact_at_once_agree(copied: Opened) -> None:
    artifact = copied("convnet")
    code = f"""
from onnxft.runtime import graph_cache
from onnxft.runtime.random_batch import random_batch
from onnxft.runtime.session import TrainSession
graph_cache.MIN_BYTES = 0
kept = {{{OPTION!r}: '1'}}
with TrainSession({str(artifact)!r}, threads=1, batch_size={BATCH_SIZE}, provider_options=kept) as session:
    print(session.step(random_batch(session.manifest, {BATCH_SIZE}, seed=3), lr=0.01).loss)
"""
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    losses = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len({*losses}) == 1
    assert len([p for p in kept(artifact) if p.suffix == ".onnx"]) <= 1
    assert not [p for p in kept(artifact) if p.suffix == ".part"]
