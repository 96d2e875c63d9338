from __future__ import annotations

import numpy as np
import pytest

from onnxft.data.augment import NAMES, Augment
from onnxft.data.preprocess import Preprocess
from onnxft.errors import ConfigError

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed here")
MODEL = Preprocess.make({}, (24, 32, 3), "float32")
GREY = Preprocess.make({}, (24, 32), "float32")


def picture(seed=0, grey=False):
    shape = (24, 32) if grey else (24, 32, 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def changed(names, *, seed=0, epoch=0, row=0, of=None, model=MODEL):
    augment = Augment.make(names, seed)
    return np.asarray(augment(of or picture(), model, epoch=epoch, row=row))


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match=r"unknown augmentation 'flop'\. Did you mean 'flip'"):
        Augment.make(["crop", "flop"], 0)


@pytest.mark.parametrize("name", NAMES)
def test_a_change_depends_on_seed_epoch_and_row_alone(name):
    first = changed([name], seed=3, epoch=5, row=7)
    changed([name], seed=3, epoch=5, row=8)
    assert (changed([name], seed=3, epoch=5, row=7) == first).all()
    for other in ({"seed": 4}, {"epoch": 6}, {"row": 8}):
        drawn = [changed([name], **{"seed": 3, "epoch": 5, "row": 7, **{k: v + 10 * i for k, v in other.items()}})
                 for i in range(20)]  # fmt: skip
        assert any((x != first).any() for x in drawn), other


@pytest.mark.parametrize("name", NAMES)
def test_grey_and_colour_stay_bytes_of_the_same_shape(name):
    for model, of in ((MODEL, picture()), (GREY, picture(grey=True))):
        x = changed([name], model=model, of=of)
        assert (x.dtype, x.shape) == (np.uint8, np.asarray(of).shape)


def test_flips_are_flips_in_half_of_the_rows():
    x = np.asarray(picture())
    for name, flipped in (("flip", x[:, ::-1]), ("vflip", x[::-1])):
        rows = [changed([name], row=r) for r in range(400)]
        assert all((r == x).all() or (r == flipped).all() for r in rows)
        assert 160 < sum((r == flipped).all() for r in rows) < 240


def test_changes_do_not_disturb_one_another():
    """The draws of one are those that it has alone: after a flip, the same colours."""
    row = next(r for r in range(9) if (changed(["flip"], row=r) != np.asarray(picture())).any())
    assert (changed(["color", "flip"], row=row) == changed(["color"], row=row)[:, ::-1]).all()


def test_changes_are_drawn_apart_from_one_another():
    x = np.asarray(picture())
    flipped, upside_down = ([(changed([n], row=r) != x).any() for r in range(60)] for n in ("flip", "vflip"))
    assert 15 < np.sum(np.array(flipped) != upside_down) < 45


def test_crop_takes_parts_of_the_stated_area_and_aspect():
    """Of a picture whose values are its coordinates, the range of the values is the part."""
    y, x = np.meshgrid(np.arange(200), np.arange(240), indexing="ij")
    source = Image.fromarray(np.dstack([y, x, 0 * x]).astype(np.uint8))
    for row in range(200):
        part = changed(["crop"], row=row, of=source).astype(float)
        height, width = np.ptp(part[..., 0]) * 24 / 23, np.ptp(part[..., 1]) * 32 / 31
        area, aspect = height * width / (200 * 240), width / height
        assert 0.2 < area < 1.1
        assert 0.7 < aspect < 1.45


def test_rotation_keeps_the_middle_and_blackens_corners():
    white = Image.new("RGB", (32, 24), (255, 255, 255))
    rows = [changed(["rotate"], row=r, of=white) for r in range(20)]
    assert all((r[8:16, 12:20] == 255).all() for r in rows)
    assert any((r[0, 0] == 0).all() for r in rows)


def test_colours_vary_within_the_stated_strength():
    grey = Image.new("L", (32, 24), 100)  # contrast and saturation leave an even grey as it is
    values = [int(changed(["color"], row=r, of=grey, model=GREY)[0, 0]) for r in range(300)]
    assert 60 <= min(values) < 70
    assert 130 < max(values) <= 140
