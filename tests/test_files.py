from __future__ import annotations

from pathlib import Path

import pytest

from onnxft import files
from onnxft.errors import ArtifactError
from onnxft.files import check_replaceable, new_directory, recover, sha256, write_atomically


def names(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir())


class CrashError(Exception):
    """Ends a test's process, so to say."""


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "directory" / "file"
    for data in (b"first", b"second, and longer"):
        write_atomically(path, data)
        assert path.read_bytes() == data
    assert names(path.parent) == ["file"]


def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(tmp_path / "file", b"old")

    def crash(descriptor: int) -> None:
        raise CrashError

    monkeypatch.setattr(files.os, "fsync", crash)
    with pytest.raises(CrashError):
        write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("before", [None, "old"])
def test_a_directory_takes_its_place_only_when_it_is_complete(before: str | None, tmp_path: Path) -> None:
    place = tmp_path / "d"
    if before:
        place.mkdir()
        (place / before).write_bytes(b"old")
    with pytest.raises(CrashError), new_directory(place) as beside:
        (beside / "new").write_bytes(b"half")
        raise CrashError
    assert names(tmp_path) == (["d"] if before else [])
    with new_directory(place) as beside:
        (beside / "new").write_bytes(b"whole")
        (beside / "sub").mkdir()
        (beside / "sub" / "too").write_bytes(b"whole")
        assert names(place) == [before] if before else not place.exists()
    assert names(tmp_path) == ["d"]
    assert names(place) == ["new", "sub"]


def test_a_crash_between_the_two_renames_is_recovered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "d"
    with new_directory(place) as beside:
        (beside / "old").write_bytes(b"old")
    replace = Path.replace

    def crash_at_the_second(path: Path, target: Path) -> Path:
        if target == place:
            raise CrashError
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", crash_at_the_second)
        with pytest.raises(CrashError), new_directory(place) as beside:
            (beside / "new").write_bytes(b"new")
    assert not place.exists()
    assert names(recover(place)) == ["old"]
    with new_directory(place) as beside:  # and the next attempt succeeds
        (beside / "new").write_bytes(b"new")
    assert names(tmp_path) == ["d"]
    assert recover(place) == place


@pytest.mark.parametrize(
    ("content", "ok"),
    [(None, True), ([], True), (["marker"], True), (["marker", "more"], True), (["photo"], False), ("a file", False)],
)
def test_only_what_is_ours_is_replaced(content: list[str] | str | None, ok: bool, tmp_path: Path) -> None:
    place = tmp_path / "d"
    if isinstance(content, str):
        place.write_text(content, encoding="utf-8")
    elif content is not None:
        place.mkdir()
        for name in content:
            (place / name).touch()
    if ok:
        check_replaceable(place, "marker")
        return
    with pytest.raises(ArtifactError, match="exists and holds no marker: it would be deleted"):
        check_replaceable(place, "marker")


@pytest.mark.parametrize("place", [".", "/"])
def test_a_place_without_a_name_cannot_be_replaced(place: str) -> None:
    with pytest.raises(ArtifactError, match="cannot be replaced as a whole"):
        check_replaceable(Path(place), "marker")


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
