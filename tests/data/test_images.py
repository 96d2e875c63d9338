from __future__ import annotations

import os
import threading

import numpy as np
import pytest
from data_manifests import manifest_of, picture_manifest

from onnxft.data import images
from onnxft.data.images import open_folder
from onnxft.data.options import DataOptions
from onnxft.data.prepare import prepare
from onnxft.errors import ConfigError, DataError
from onnxft.manifest import Loss

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed here")
COUNTS = {"broken": 2, "crack": 3, "good": 4}


def save(path, seed, sides=(30, 41)):
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*sides, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    seed = 0
    for name, count in COUNTS.items():
        for i in range(count):
            save(tmp_path / "cells" / name / f"{i}.png", seed)
            seed += 1
    (tmp_path / "cells" / ".DS_Store").write_bytes(b"hidden")
    (tmp_path / "cells" / "good" / ".thumb.png").write_bytes(b"hidden")
    return tmp_path / "cells"


def opened(folder, manifest=None, **options):
    return open_folder(folder, manifest or picture_manifest(), DataOptions(**options))


def test_rows_are_the_pictures_with_the_numbers_of_their_folders(folder):
    data = opened(folder)
    assert (len(data), data.classes, data.lengths) == (9, tuple(COUNTS), None)
    assert data.labels.tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 2]
    data.check(picture_manifest(), {})
    batch = data.read(np.array([8, 0]), sizes={}, epoch=None)
    assert batch["labels"].tolist() == [2, 0]
    expected = prepare([folder / "good" / "3.png", folder / "broken" / "0.png"], picture_manifest())
    np.testing.assert_array_equal(batch["image"], expected["image"])


def test_the_order_of_the_classes_may_be_given_or_be_the_manifests(folder):
    names = ["good", "broken", "crack"]
    for data in (opened(folder, classes=names), opened(folder, picture_manifest(classes=tuple(names)))):
        assert data.classes == tuple(names)
        assert data.labels.tolist() == [1, 1, 2, 2, 2, 0, 0, 0, 0]


def test_a_class_without_a_folder_is_allowed_where_the_names_are_given(folder):
    data = opened(folder, picture_manifest(loss=Loss("cross_entropy", "y", 4)), classes=["a", *COUNTS])
    assert sorted(set(data.labels.tolist())) == [1, 2, 3]


CLASSES = {
    "unknown folder": ({}, {"classes": ["broken", "crak", "good"]},
                       r"has the class 'crack', which is none of the model's\. Did you mean 'crak'"),
    "too few names": ({}, {"classes": ["good", "crack"]}, r"classes has 2 names \('good', 'crack'\), the model 3"),
    "twice": ({}, {"classes": ["good", "crack", "good"]}, "classes has 'good' twice"),
    "too few folders": ({"loss": Loss("cross_entropy", "y", 4)}, {},
                        r"has 3 classes \('broken', 'crack', 'good'\), the model 4: which number"),
}  # fmt: skip


@pytest.mark.parametrize("case", CLASSES)
def test_classes_that_do_not_fit(folder, case):
    manifest, options, words = CLASSES[case]
    with pytest.raises(DataError, match=words):
        opened(folder, picture_manifest(**manifest), **options)


def no_folder(folder):
    return folder / "no"


def bare_picture(folder):
    save(folder / "top.png", 1)


def no_classes(folder):
    (folder.parent / "empty").mkdir()
    return folder.parent / "empty"


def empty_class(folder):
    (folder / "new").mkdir()


def text_among_pictures(folder):
    (folder / "good" / "notes.txt").write_text("three broken")


def link_outside(folder):
    save(folder.parent / "elsewhere.png", 1)
    (folder / "good" / "a.png").symlink_to(folder.parent / "elsewhere.png")


def circle(folder):
    (folder / "good" / "a.png").symlink_to(folder / "good" / "a.png")


def pipe(folder):
    os.mkfifo(folder / "good" / "a.png")


def dead_link(folder):
    (folder / "good" / "a.png").symlink_to(folder / "good" / "gone.png")


def class_outside(folder):
    save(folder.parent / "other" / "a.png", 1)
    (folder / "new").symlink_to(folder.parent / "other")


def folder_link(folder):
    (folder / "good" / "again").symlink_to(folder / "broken")


STRUCTURE = {
    no_folder: "there is no folder '.*no'",
    bare_picture: "top.png' lies beside the class folders of",
    no_classes: "empty' holds no class folders: one sub-folder with pictures for each class",
    empty_class: "the class folder '.*new' holds no picture: fill it or remove it",
    text_among_pictures: "notes.txt' lies among the pictures and has the suffix of none: move it away",
    link_outside: "a.png' leads out of the data folder",
    circle: "a.png' (is no regular file|cannot be followed)",
    pipe: "a.png' is no regular file: move it away",
    dead_link: "a.png' is no regular file: move it away",
    class_outside: "new' leads out of the data folder",
    folder_link: "again' is a link to a folder",
}


@pytest.mark.parametrize("change", STRUCTURE)
def test_structure(folder, change):
    place = change(folder) or folder
    with pytest.raises(DataError, match=STRUCTURE[change]):
        opened(place)


def test_a_folder_that_cannot_be_listed(folder, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(images, "_class_folders", refuse)
    with pytest.raises(DataError, match=r"cells' cannot be read: .*Permission denied"):
        opened(folder)


def test_sub_folders_and_links_inside_are_read(folder):
    save(folder / "good" / "more" / "deep.JPEG", 5)
    (folder / "good" / "same.png").symlink_to(folder / "good" / "0.png")
    assert len(opened(folder)) == 11


def test_every_header_is_opened_before_the_first_step(folder):
    (folder / "good" / "3.png").write_bytes(b"no picture")
    data = opened(folder)
    with pytest.raises(DataError, match=r"good/3.png' cannot be read"):
        data.check(picture_manifest(), {})


def test_a_truncated_picture_in_an_epoch_is_named(folder):
    whole = (folder / "crack" / "1.png").read_bytes()
    (folder / "crack" / "1.png").write_bytes(whole[: len(whole) // 2])
    data = opened(folder)
    data.check(picture_manifest(), {})
    with pytest.raises(DataError, match=r"the picture '.*crack/1.png' cannot be read: .*truncated"):
        data.read(np.arange(9), sizes={}, epoch=2)


def test_a_picture_that_vanished_in_an_epoch_is_named(folder):
    data = opened(folder)
    (folder / "crack" / "1.png").unlink()
    with pytest.raises(DataError, match=r"there is no picture '.*crack/1.png'"):
        data.read(np.arange(9), sizes={}, epoch=2)


def test_a_picture_of_another_size_is_named_where_they_are_not_resized(folder):
    with pytest.raises(DataError, match=r"broken/0.png' has 30 × 41 pixels and not 24 × 32"):
        opened(folder, preprocess={"resize": "none"}).check(picture_manifest(), {})


def test_options_are_checked_when_the_folder_is_opened(folder):
    with pytest.raises(ConfigError, match=r"unknown preprocess key 'men'\. Did you mean 'mean'"):
        opened(folder, preprocess={"men": 0.5})
    with pytest.raises(ConfigError, match=r"unknown augmentation 'flipp'\. Did you mean"):
        opened(folder, augment=["flipp"])


def test_models_with_other_labels_or_inputs_are_refused(folder):
    with pytest.raises(DataError, match=r"the folders of a picture name its class, but 'model' is trained with other"):
        opened(folder, picture_manifest(label=("float32", (3,)), loss=Loss("mse", "y")))
    with pytest.raises(DataError, match="has the inputs 'a', 'b'"):
        opened(folder, manifest_of({"a": ("float32", 3, 24, 32), "b": ("float32", 7)}))
    with pytest.raises(ConfigError, match=r"rows of the shape \[7\] are no pictures"):
        opened(folder, manifest_of({"a": ("float32", 7)}))


def test_augmentation_is_of_the_epoch_and_the_row_not_of_the_batch(folder):
    options = {"augment": ["flip", "crop", "color"], "seed": 3}
    data = opened(folder, **options)
    whole = data.read(np.arange(9), sizes={}, epoch=1)
    again = opened(folder, **options).read(np.array([6, 2]), sizes={}, epoch=1)
    np.testing.assert_array_equal(again["image"], whole["image"][[6, 2]])
    assert again["labels"].tolist() == [2, 1]
    assert (data.read(np.arange(9), sizes={}, epoch=2)["image"] != whole["image"]).any(axis=(1, 2, 3)).all()
    assert whole["image"].min() >= 0
    assert whole["image"].max() <= 1


def test_without_an_epoch_nothing_is_changed(folder):
    plain = opened(folder).read(np.arange(9), sizes={}, epoch=1)
    data = opened(folder, augment=["flip", "vflip", "crop", "color", "rotate"])
    data.read(np.arange(9), sizes={}, epoch=0)
    np.testing.assert_array_equal(data.read(np.arange(9), sizes={}, epoch=None)["image"], plain["image"])


@pytest.mark.parametrize("augment", [[], ["flip"], ["crop"]])
def test_a_second_epoch_decodes_nothing_again(folder, monkeypatch, augment):
    data = opened(folder, augment=augment)
    first = [data.read(np.arange(9), sizes={}, epoch=e)["image"] for e in (0, 1)]
    monkeypatch.setattr(images, "decode", None)
    np.testing.assert_array_equal(data.read(np.arange(9), sizes={}, epoch=1)["image"], first[1])


def test_what_does_not_fit_into_memory_is_decoded_again(folder, monkeypatch):
    monkeypatch.setattr(images, "_memory_limit", lambda: 2 * 24 * 32 * 4 + 5)
    calls = []
    real = images.decode
    monkeypatch.setattr(images, "decode", lambda path, mode: calls.append(path) or real(path, mode))
    data = opened(folder)
    for epoch in (0, 1):
        data.read(np.arange(9), sizes={}, epoch=epoch)
    assert len(calls) == 9 + 7


def test_several_threads_read_the_same(folder):
    data = opened(folder, augment=["crop", "rotate"])
    expected = opened(folder, augment=["crop", "rotate"]).read(np.arange(9), sizes={}, epoch=4)["image"]
    found = {}
    threads = [
        threading.Thread(
            target=lambda t=t: found.update({t: data.read(np.roll(np.arange(9), t), sizes={}, epoch=4)["image"]})
        )
        for t in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for t in range(6):
        np.testing.assert_array_equal(found[t], np.roll(expected, t, axis=0))


def test_an_open_size_is_that_of_the_session(folder):
    manifest = picture_manifest(3, "h", 32, dimensions={"h": 24})
    data = opened(folder, manifest)
    for height in (24, 16, 24):
        assert data.read(np.arange(2), sizes={"h": height}, epoch=None)["image"].shape == (2, 3, height, 32)


def test_the_fingerprint_is_of_names_and_bytes(folder):
    first = opened(folder).fingerprint()
    assert opened(folder).fingerprint() == first
    (folder / "good" / "3.png").rename(folder / "good" / "9.png")
    renamed = opened(folder).fingerprint()
    save(folder / "good" / "9.png", 77)
    assert len({first, renamed, opened(folder).fingerprint()}) == 3


def test_a_session_trains_and_predicts_on_pictures(folder, digits_artifact):
    import onnxft

    session = onnxft.TrainSession(digits_artifact, threads=1)
    data = open_folder(folder, session.manifest, DataOptions(classes=[*COUNTS, *"3456789"], augment=["crop"]))
    data.check(session.manifest, session.dimensions)
    assert np.isfinite(session.step(data.read(np.arange(8), sizes=session.dimensions, epoch=0), lr=1e-3).loss)
    batch = data.read(np.array([5, 0]), sizes=session.dimensions, epoch=None)
    paths = [folder / "good" / "0.png", folder / "broken" / "0.png"]
    outputs = [session.predict(x) for x in ({"image": batch["image"]}, onnxft.prepare(paths, session.manifest))]
    for name in outputs[0]:
        np.testing.assert_array_equal(outputs[0][name], outputs[1][name])
