"""What a Hugging Face processor does to pictures, in the keys of an artifact's `preprocessing`.

The keys are those of `onnxft/data/preprocess.py`, which applies them; tests compare with transformers' own output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
_OWN_WAYS = (
    "Perceiver", "TextNet", "ImageGPT", "Donut", "Siglip2", "Gemma3", "TimmWrapper", "PPLCNet", "ViTHybrid",
)  # fmt: skip
"""Processors that do something else than resize, crop, scale and normalise."""


def picture_keys(given: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The keys that say what the processor of a `preprocessor_config.json` does, and notes on what they cannot say."""
    kind = str(given.get("image_processor_type") or given.get("feature_extractor_type") or "")
    if kind.startswith(_OWN_WAYS):
        return {}, (f"the steps of {kind} are not known here: give the model's --preprocess, or feed .npz",)
    found, notes = _sizes(given, kind)
    if isinstance(number := given.get("resample"), int) and 0 <= number < len(_FILTERS):
        found["interpolation"] = _FILTERS[number]
    if given.get("do_flip_channel_order"):
        found["color"] = "BGR"
    found["scale"] = given.get("rescale_factor", 1 / 255) if given.get("do_rescale", True) else 1.0
    # MobileViT alone does not normalise unless told to.
    if given.get("do_normalize", not kind.startswith("MobileViT")):
        missing = [key for key in ("image_mean", "image_std") if given.get(key) is None]
        if missing:
            notes.append(f"preprocessor_config.json does not say {' and '.join(missing)}: give them as --preprocess")
        found |= {own: given[f"image_{own}"] for own in ("mean", "std") if f"image_{own}" not in missing}
    if kind.startswith("EfficientNet") and {"mean", "std"} <= found.keys():
        if given.get("rescale_offset"):  # 1 is taken off before the mean
            found["mean"] = [m + 1 for m in found["mean"]]
        if given.get("include_top", True):  # divided by std a second time
            found["std"] = [s * s for s in found["std"]]
    return found, tuple(notes)


def _sizes(given: Mapping[str, Any], kind: str) -> tuple[dict[str, Any], list[str]]:
    """`size` and `resize`."""
    size, cut = given.get("size"), given.get("crop_size") if given.get("do_center_crop") else None
    box, final = _box(size), _box(cut, square=True)
    if not given.get("do_resize", True):
        if final is None:
            return {"resize": "none"}, []
        return {"size": final, "resize": "crop"}, [
            "the processor takes the middle of a picture at its own scale; here pictures are resized to cover it first"
        ]
    if kind.startswith("ConvNext"):
        side = _edge(size) or 384
        share = given.get("crop_pct") or 224 / 256
        return {"size": [side, side], "resize": int(side / share) if side < 384 else "stretch"}, []
    share = (given.get("crop_pct") or 1.0) if kind.startswith("PoolFormer") else 1.0
    if final is None and isinstance(size, int):
        return {"size": [size, size], "resize": "stretch"}, []
    edge = _edge(size)
    if final is None and box is None and edge is not None:
        return {"size": [edge, edge], "resize": "crop"}, [
            f"the processor leaves the longer side of a picture as it is; here its middle of {edge} × {edge} is taken"
        ]
    if box is not None:
        if final is None:
            return {"size": box, "resize": "stretch"}, []
        keeps_aspect = share != 1.0 and box[0] == box[1]
        return {"size": final, "resize": int(box[0] / share) if keeps_aspect else [int(d / share) for d in box]}, []
    if edge is None:
        return {}, [f"the size {size} of the processor is not known here: give --preprocess size and resize"]
    edge = int(256 / 224 * edge) if kind.startswith("Levit") else edge
    return {"size": final, "resize": int(edge / share)}, []


def _edge(size: Any) -> int | None:
    if isinstance(size, Mapping):
        edge = size.get("shortest_edge")
        return edge if isinstance(edge, int) and "longest_edge" not in size else None
    return size if isinstance(size, int) else None


def _box(size: Any, *, square: bool = False) -> list[int] | None:
    if isinstance(size, Mapping) and {"height", "width"} <= size.keys():
        return [size["height"], size["width"]]
    return [size, size] if square and isinstance(size, int) else None
