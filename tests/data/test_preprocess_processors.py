"""The transform of pictures against transformers' own image processors."""

from __future__ import annotations

import json

import numpy as np
import pytest

transformers = pytest.importorskip("transformers", reason="transformers is not installed here")
Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed here")

from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES  # noqa: E402
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES  # noqa: E402

from onnxft.data.preprocess import Preprocess  # noqa: E402
from onnxft.exporters.huggingface_pictures import picture_keys  # noqa: E402

# In both Pillow resizes the same bytes; what remains is float32 against float64 arithmetic of values up to about 10.
TOLERANCE = 2e-6
KINDS = sorted(
    {
        names["pil"]
        for model in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
        if (names := IMAGE_PROCESSOR_MAPPING_NAMES.get(model)) and "pil" in names
    }
)
OTHER_STEPS = {"Perceiver", "TextNet", "ImageGPT", "Donut", "Siglip2", "Gemma3", "TimmWrapper"}
SHAPES = [(40, 61), (300, 300), (91, 52), (17, 400)]


def pictures():
    rng = np.random.default_rng(3)
    return [Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)) for shape in SHAPES]


def keys_of(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    return picture_keys(json.loads((tmp_path / "preprocessor_config.json").read_text()))


def compare(processor, tmp_path):
    keys, notes = keys_of(processor, tmp_path)
    assert notes == ()
    transform = Preprocess.make(keys, (3, *keys["size"]), "float32")
    for picture in pictures():
        theirs = np.asarray(processor(picture)["pixel_values"][0])
        np.testing.assert_allclose(transform(picture), theirs, rtol=0, atol=TOLERANCE * max(1, np.abs(theirs).max()))


@pytest.mark.parametrize("kind", [k for k in KINDS if not k.startswith(tuple(OTHER_STEPS))])
def test_every_processor_of_an_image_classifier(kind, tmp_path):
    compare(getattr(transformers, kind)(), tmp_path)


@pytest.mark.parametrize("kind", [k for k in KINDS if k.startswith(tuple(OTHER_STEPS))])
def test_processors_with_other_steps_are_noted(kind):
    keys, notes = picture_keys({"image_processor_type": kind.removesuffix("Pil")})
    assert keys == {}
    assert "--preprocess" in notes[0]


CHANGED = {
    "smaller": ("ViTImageProcessorPil", {"size": {"height": 30, "width": 20}}),
    "old whole number": ("ViTImageProcessorPil", {"size": 28}),
    "not scaled": ("ViTImageProcessorPil", {"do_rescale": False}),
    "not normalised": ("ViTImageProcessorPil", {"do_normalize": False, "resample": 3}),
    "nearest": ("ViTImageProcessorPil", {"resample": 0, "size": {"height": 33, "width": 47}}),
    "lanczos": ("ViTImageProcessorPil", {"resample": 1, "size": {"height": 33, "width": 47}}),
    "ConvNeXT, cut": ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 224}, "crop_pct": 0.95}),
    "ConvNeXT, small": ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 31}}),
    "ConvNeXT, stretched": ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 384}, "crop_pct": 0.5}),
    "middle larger than the picture": ("BitImageProcessorPil", {
        "size": {"shortest_edge": 30}, "crop_size": {"height": 41, "width": 36}}),
    "stretched, then cut": ("DeiTImageProcessorPil", {
        "size": {"height": 40, "width": 50}, "crop_size": {"height": 31, "width": 24}}),
    "PoolFormer by sides": ("PoolFormerImageProcessorPil", {"size": {"height": 64, "width": 64}, "crop_pct": 0.8}),
    "EfficientNet, headless": ("EfficientNetImageProcessorPil", {"include_top": False, "rescale_offset": True}),
    "EfficientNet, cut": ("EfficientNetImageProcessorPil", {
        "do_center_crop": True, "rescale_factor": 1 / 127.5, "rescale_offset": True}),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGED)
def test_changed_processors(case, tmp_path):
    kind, options = CHANGED[case]
    compare(getattr(transformers, kind)(**options), tmp_path)


NOTED = {
    "open longer side": (
        {"image_processor_type": "X", "size": {"shortest_edge": 30}, "image_mean": [0.5], "image_std": [0.5]},
        {"size": [30, 30], "resize": "crop"}, "leaves the longer side",
    ),
    "bounded sides": (
        {"size": {"shortest_edge": 3, "longest_edge": 9}, "do_normalize": False}, {}, "give --preprocess size"),
    "no mean": ({"size": {"height": 3, "width": 4}, "image_std": [0.1]}, {"std": [0.1]}, "does not say image_mean"),
    "cut alone": (
        {"do_resize": False, "do_center_crop": True, "crop_size": 7, "do_normalize": False},
        {"size": [7, 7], "resize": "crop"}, "at its own scale",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NOTED)
def test_what_the_keys_cannot_say_is_noted(case):
    given, expected, words = NOTED[case]
    keys, notes = picture_keys(given)
    assert expected.items() <= keys.items()
    assert words in notes[0]
