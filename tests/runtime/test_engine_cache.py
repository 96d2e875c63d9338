"""The folder of TensorRT's engines: kept between runs, and never taken from somebody else."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from onnxft.errors import WriteError
from onnxft.runtime.engine_cache import engine_cache


@pytest.fixture
def artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    (tmp_path / "artifact").mkdir()
    return tmp_path / "artifact"


def filled(artifact: Path) -> Path:
    place = Path(engine_cache(artifact)["trt_engine_cache_path"])
    (place / "train.engine").write_bytes(b"engine")
    return place


def test_engines_are_kept_in_the_artifact(artifact: Path) -> None:
    place = filled(artifact)
    assert place == artifact / "cache" / "tensorrt"
    assert engine_cache(artifact) == {"trt_engine_cache_path": str(place), "trt_timing_cache_path": str(place)}
    assert (place / "train.engine").exists()


def no_seal(place: Path, outside: Path) -> None:
    (place / "seal").unlink()


def another_seal(place: Path, outside: Path) -> None:
    (place / "seal").write_bytes(b"0" * 64)


def another_user(place: Path, outside: Path) -> None:
    shutil.rmtree(Path(os.environ["XDG_CACHE_HOME"]))


def a_link(place: Path, outside: Path) -> None:
    shutil.move(place, outside)
    place.symlink_to(outside)


def a_link_above(place: Path, outside: Path) -> None:
    shutil.move(place.parent, outside)
    place.parent.symlink_to(outside)


@pytest.mark.parametrize("change", [no_seal, another_seal, another_user, a_link, a_link_above])
def test_engines_of_somebody_else_are_removed(artifact: Path, tmp_path: Path, change: object) -> None:
    place = filled(artifact)
    change(place, tmp_path / "outside")  # type: ignore[operator]
    found = Path(engine_cache(artifact)["trt_engine_cache_path"])
    assert [p.name for p in found.iterdir()] == ["seal"]
    assert not found.is_symlink()
    assert not found.parent.is_symlink()
    # What a link pointed to is not touched.
    assert change not in (a_link, a_link_above) or any((tmp_path / "outside").rglob("train.engine"))


def test_an_artifact_that_was_copied_elsewhere_begins_anew(artifact: Path, tmp_path: Path) -> None:
    filled(artifact)
    shutil.copytree(artifact, tmp_path / "copy")
    place = Path(engine_cache(tmp_path / "copy")["trt_engine_cache_path"])
    assert not (place / "train.engine").exists()


def test_a_place_that_cannot_be_written_is_named(artifact: Path) -> None:
    (artifact / "cache").write_text("a file")
    with pytest.raises(WriteError, match=r"cache/tensorrt' cannot be written: .*trt_engine_cache_enable=0"):
        engine_cache(artifact)


def test_without_a_folder_nothing_is_kept() -> None:
    assert engine_cache(None) == {"trt_engine_cache_enable": "0", "trt_timing_cache_enable": "0"}
