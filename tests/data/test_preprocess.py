from __future__ import annotations

import sys

import numpy as np
import pytest
from data_manifests import manifest_of, picture_manifest

from onnxft.data import decode as decoding
from onnxft.data.decode import decode, header, picture_suffixes
from onnxft.data.prepare import prepare
from onnxft.data.preprocess import Preprocess, preprocess_for
from onnxft.data.preprocess_keys import parse, plain
from onnxft.errors import ConfigError, DataError

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed here")


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("size", "24", (24, 24)), ("size", "24,32", (24, 32)), ("size", [24, 32], (24, 32)), ("size", 7, (7, 7)),
        ("resize", "crop", "crop"), ("resize", "256", 256), ("resize", "[40, 50]", (40, 50)), ("resize", 31, 31),
        ("mean", "0.5", (0.5,)), ("mean", "[0.1, 0.2, 0.3]", (0.1, 0.2, 0.3)), ("mean", [0, 0, 0], (0.0, 0.0, 0.0)),
        ("std", "0.5,1,2", (0.5, 1.0, 2.0)), ("scale", "1", 1.0), ("scale", 0.25, 0.25), ("color", "BGR", "BGR"),
        ("interpolation", "box", "box"),
    ],
)  # fmt: skip
def test_values_from_the_command_line_and_from_a_manifest(key, text, value):
    parsed = parse({key: text})
    assert parsed == {key: value}
    assert parse(plain(parsed)) == parsed


BAD = {
    "unknown key": ({"sise": "24"}, "unknown preprocess key 'sise'. Did you mean 'size'"),
    "size is no number": ({"size": "wide"}, "preprocess size is 'wide'; it must be one or two whole numbers"),
    "size is broken": ({"size": "24.5"}, "preprocess size is '24.5'"),
    "size is zero": ({"size": 0}, "preprocess size is 0"),
    "size beyond a picture's": ({"size": "70000"}, "preprocess size is '70000'"),
    "three sizes": ({"size": "1,2,3"}, "preprocess size is '1,2,3'"),
    "resize unknown": ({"resize": "strech"}, "preprocess resize is 'strech'; it must be stretch, crop, none or"),
    "interpolation": ({"interpolation": "bilinea"}, "unknown preprocess interpolation 'bilinea'. Did you mean 'bilin"),
    "colour": ({"color": "rgb"}, "unknown preprocess color 'rgb'. Known: 'RGB'"),
    "mean is text": ({"mean": "imagenet"}, "preprocess mean is 'imagenet'; it must be a number, or one a channel"),
    "mean is empty": ({"mean": []}, r"preprocess mean is \[\]"),
    "mean is null": ({"mean": None}, "preprocess mean is None"),
    "mean is infinite": ({"mean": "inf"}, "preprocess mean is 'inf'"),
    "std is zero": ({"std": "0.1,0,0.1"}, "preprocess std is '0.1,0,0.1'; it must not be 0"),
    "two scales": ({"scale": "1,2"}, "preprocess scale is '1,2'; it must be one number other than 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_values_are_named(case):
    given, words = BAD[case]
    with pytest.raises(ConfigError, match=words):
        parse(given)


UNFIT = {
    "size": ({"size": "24"}, (3, 24, 32), "float32", "preprocess size is 24,24, the model takes pictures of 24,32"),
    "colour": ({"color": "L"}, (3, 24, 32), "float32", "color L has 1 channels, the model's input 3"),
    "mean": ({"mean": "1,2"}, (3, 24, 32), "float32", "mean has 2 values, the model's input 3 channels"),
    "not a picture": ({}, (7,), "float32", r"rows of the shape \[7\] are no pictures"),
    "five channels": ({}, (5, 24, 32), "float32", r"rows of the shape \[5, 24, 32\] are no pictures"),
    "bytes that are scaled": ({"mean": 1}, (3, 24, 32), "uint8", "element type uint8, to which pictures are not"),
    "integers": ({}, (3, 24, 32), "int64", "element type int64"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_does_not_fit_the_model_is_named(case):
    given, shape, dtype, words = UNFIT[case]
    with pytest.raises(ConfigError, match=words):
        Preprocess.make(given, shape, dtype)


LAYOUTS = {
    "first": ((3, 24, 32), {}, lambda x: x.transpose(2, 0, 1)),
    "last": ((24, 32, 3), {}, lambda x: x),
    "three rows": ((3, 24, 3), {}, lambda x: x[:, :3].transpose(2, 0, 1)),
    "BGR": ((3, 24, 32), {"color": "BGR"}, lambda x: x[..., ::-1].transpose(2, 0, 1)),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_formula_and_layout(case):
    shape, more, arranged = LAYOUTS[case]
    sides = [d for i, d in enumerate(shape) if i != (2 if case == "last" else 0)]
    x = noise(*sides, 3)
    mean, std = np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.25, 2.0])
    made = Preprocess.make({"mean": list(mean), "std": list(std), "scale": 0.01, **more}, shape, "float32")
    y = made(Image.fromarray(x))
    bytes_ = np.moveaxis(arranged(x) if case != "three rows" else x.transpose(2, 0, 1), 2 if case == "last" else 0, -1)
    expected = (0.01 * bytes_ - mean) / std
    np.testing.assert_allclose(y, expected if case == "last" else np.moveaxis(expected, -1, 0), rtol=1e-5, atol=1e-6)
    assert (y.dtype, y.shape) == (np.float32, shape)


def test_grey_with_and_without_a_channel():
    x = noise(24, 32)
    for shape in ((1, 24, 32), (24, 32, 1), (24, 32)):
        y = Preprocess.make({}, shape, "float32")(Image.fromarray(x))
        assert y.shape == shape
        np.testing.assert_allclose(y.squeeze(), x / 255, rtol=1e-6)


def test_a_model_that_takes_bytes_gets_them():
    x = noise(24, 32, 3)
    y = Preprocess.make({"color": "RGB"}, (24, 32, 3), "uint8")(Image.fromarray(x))
    assert y.dtype == np.uint8
    np.testing.assert_array_equal(y, x)


RESIZED = {
    # (rule, size of the picture) -> (height, width) that the whole picture gets for a model of 24 × 32
    ("stretch", (50, 50)): (24, 32), ("crop", (50, 50)): (32, 32), ("crop", (48, 96)): (24, 48),
    ("crop", (24, 32)): (24, 32), (40, (50, 101)): (40, 80), (40, (101, 50)): (80, 40), ((30, 40), (5, 9)): (30, 40),
}  # fmt: skip


@pytest.mark.parametrize("case", RESIZED)
def test_resize_rules(case):
    rule, sides = case
    made = Preprocess.make({"resize": rule}, (3, 24, 32), "float32")
    assert made._resized(*sides) == RESIZED[case]
    assert made(Image.fromarray(noise(*sides, 3))).shape == (3, 24, 32)


def test_pictures_of_another_size_are_refused_where_they_are_not_resized():
    manifest = picture_manifest(preprocessing={"resize": "none"})
    x = noise(24, 32, 3)
    np.testing.assert_allclose(prepare([x], manifest)["image"][0], x.transpose(2, 0, 1) / 255, rtol=1e-6)
    with pytest.raises(DataError, match="picture 1 has 32 × 24 pixels and not 24 × 32, and resize is none"):
        prepare([x, noise(32, 24, 3)], manifest)


def test_given_keys_go_before_the_manifest_and_sizes_before_its_dimensions():
    manifest = picture_manifest(3, "h", 32, dimensions={"h": 24}, preprocessing={"mean": [0.5], "std": [2.0]})
    made = preprocess_for(manifest, {"mean": "0.1,0.2,0.3"}, {"h": 48})
    assert (made.mean, made.std, made.size) == ((0.1, 0.2, 0.3), (2.0,), (48, 32))


def modes():
    rng = np.random.default_rng(5)
    grey, rgb = rng.integers(0, 256, (24, 32), dtype=np.uint8), rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    alpha = rng.integers(0, 256, (24, 32), dtype=np.uint8)
    on_black = np.rint(rgb * (alpha[..., None] / 255))
    palette = Image.fromarray(rgb).quantize(16)
    grey3 = np.repeat(grey[..., None], 3, 2)
    hole = Image.fromarray(grey)
    hole.info["transparency"] = 7
    return {
        "L": (Image.fromarray(grey), grey3),
        "1": (Image.fromarray(grey > 99), np.repeat(255 * (grey > 99)[..., None], 3, 2)),
        "I;16": (Image.fromarray(grey.astype(np.uint16) * 257), grey3),
        "RGBA": (Image.fromarray(np.dstack([rgb, alpha])), on_black),
        "LA": (Image.fromarray(np.dstack([grey, alpha])), np.rint(grey3 * (alpha[..., None] / 255))),
        "P": (palette, np.asarray(palette.convert("RGB"))),
        "L, one value transparent": (hole, np.where(grey3 == 7, 0, grey3)),
        "CMYK": (Image.fromarray(rgb).convert("CMYK"), rgb),
    }  # fmt: skip


@pytest.mark.parametrize("mode", modes())
def test_modes(mode):
    picture, expected = modes()[mode]
    y = Preprocess.make({"scale": 1}, (24, 32, 3), "float32")(picture)
    np.testing.assert_allclose(y, expected, atol=1)  # blending rounds
    if "A" not in mode:
        np.testing.assert_array_equal(y, expected)


def test_pixels_of_32_bits_are_refused(tmp_path):
    for dtype in (np.int32, np.float32):
        Image.fromarray(np.zeros((24, 32), dtype)).save(tmp_path / "deep.tiff")
        with pytest.raises(DataError, match=r"deep.tiff' has pixels of 32 bits, whose range is not known"):
            decode(tmp_path / "deep.tiff", "L")


def test_sixteen_bits_from_a_file(tmp_path):
    x = np.random.default_rng(0).integers(0, 65536, (24, 32), dtype=np.uint16)
    Image.fromarray(x).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(np.asarray(decode(tmp_path / "deep.png", "L")), np.rint(x / 257))


def test_exif_orientation_is_honoured(tmp_path):
    x = noise(24, 32, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(x).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(decode(tmp_path / "turned.png", "RGB")), np.rot90(x, -1))


def test_damaged_and_missing_pictures(tmp_path):
    whole, damaged = tmp_path / "whole.png", tmp_path / "damaged.png"
    Image.fromarray(noise(24, 32, 3)).save(whole)
    damaged.write_bytes(whole.read_bytes()[:-900])
    assert header(damaged) == (24, 32)
    with pytest.raises(DataError, match=r"picture '.*damaged.png' cannot be read: .*truncated.* Remove it or"):
        decode(damaged, "RGB")
    damaged.write_bytes(b"text")
    with pytest.raises(DataError, match=r"damaged.png' cannot be read: cannot identify"):
        header(damaged)
    with pytest.raises(DataError, match=r"there is no picture '.*gone.png'"):
        decode(tmp_path / "gone.png", "RGB")


def test_formats_that_start_programs_are_not_read(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(DataError, match="cannot be read"):
        header(tmp_path / "a.png")
    assert ".eps" not in picture_suffixes()
    assert {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".gif"} <= picture_suffixes()


@pytest.mark.parametrize("pillow_finds_it", [True, False])
def test_too_many_pixels_are_refused_before_decoding(tmp_path, monkeypatch, pillow_finds_it):
    Image.fromarray(noise(24, 32, 3)).save(tmp_path / "a.png")
    if pillow_finds_it:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    else:
        monkeypatch.setattr(decoding, "MAX_PIXELS", 700)
    with pytest.raises(DataError, match=r"a.png' has .*more than [0-9,]+ pixels: make it smaller"):
        header(tmp_path / "a.png")


def test_prepare_takes_paths_pictures_and_arrays(tmp_path):
    x = noise(31, 45, 3)
    Image.fromarray(x).save(tmp_path / "a.png")
    batch = prepare([tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(x), x], picture_manifest())
    assert list(batch) == ["image"]
    assert batch["image"].shape == (4, 3, 24, 32)
    assert (batch["image"] == batch["image"][:1]).all()


WRONG = {
    "one path": ("a.png", r"takes a list of pictures: \['a.png'\]"),
    "none": ([], "given no picture"),
    "numbers": ([np.zeros((24, 32, 3))], r"picture 0 has the shape \[24, 32, 3\] and type float64"),
    "channels first": ([noise(3, 24, 32)], r"picture 0 has the shape \[3, 24, 32\] and type uint8"),
    "missing": (["no.png"], "there is no picture 'no.png'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_prepare_does_not_take(case):
    pictures, words = WRONG[case]
    with pytest.raises(DataError, match=words):
        prepare(pictures, picture_manifest())


def test_several_inputs_are_no_folder_of_pictures():
    manifest = manifest_of({"a": ("float32", 3, 24, 32), "b": ("float32", 7)})
    with pytest.raises(DataError, match="has the inputs 'a', 'b', and a folder of pictures holds one"):
        preprocess_for(manifest)


def test_pillow_is_asked_for_by_its_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match=r"'PIL' is not installed: pip install 'onnxft\[images\]'"):
        prepare([tmp_path / "a.png"], picture_manifest())
