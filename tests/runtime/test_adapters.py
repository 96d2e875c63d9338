"""Adapters outside an artifact: merged, for ONNX Runtime, for peft, and read again."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from models import Adaptable, adaptable
from onnx_models import random, save_mlp
from safetensors.numpy import load_file, save_file

import onnxft
from onnxft.errors import ArtifactError, WriteError
from onnxft.merge import Merge
from onnxft.runtime.adapters.merge import merged_weight
from onnxft.runtime.adapters.onnx_adapter import write_onnx_adapter

torch = pytest.importorskip("torch", reason="torch is not installed here: artifacts are exported elsewhere")

OPTIONS = {"method": "lora:3,head,bias", "trainable": ["token"], "lora_alpha": 4.5, "input_names": ["image"]}
"""Adapters, whole modules, parts of modules that have an adapter or none, and a parameter of no module."""
IMAGE = random(5, 3, 9, 8, seed=1)


def export(directory: Path, **options: Any) -> Path:
    net, example = adaptable()
    return onnxft.export(net, example, directory, **{**OPTIONS, **options})


def train(artifact: Path) -> onnxft.TrainSession:
    session = onnxft.TrainSession(artifact, threads=1)
    for _ in range(3):
        session.step({"image": IMAGE[:4], "labels": np.array([4, 0, 1, 3])}, lr=0.05)
    return session


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("adapters") / "artifact")


@pytest.fixture(scope="module")
def session(artifact: Path) -> Iterator[onnxft.TrainSession]:
    with train(artifact) as trained:
        yield trained


@pytest.fixture(scope="module")
def merged(session: onnxft.TrainSession, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """What the merged model gives, which is not what the artifact began with."""
    path = tmp_path_factory.mktemp("merged") / "model.onnx"
    session.export_model(path)
    (outputs,) = ort.InferenceSession(path).run(None, {"image": IMAGE})
    (before,) = ort.InferenceSession(session.directory / "infer.onnx").run(None, {"image": IMAGE})
    assert np.abs(outputs - before).max() > 0.1
    return outputs


@pytest.fixture
def adapter(session: onnxft.TrainSession, tmp_path: Path) -> Path:
    assert session.export_adapter(tmp_path / "adapter") == ""
    return tmp_path / "adapter"


@pytest.mark.parametrize(("kernel", "transposed"), [((), False), ((), True), ((2, 3), False)])
def test_a_weight_is_merged_by_its_formula(kernel: tuple[int, ...], transposed: bool) -> None:
    w, a, b = random(5, 4, *kernel), random(2, 4, *kernel, seed=1), random(5, 2, *[1] * len(kernel), seed=2)
    shape = w.T.shape if transposed else w.shape
    got = merged_weight(w.T if transposed else w, a, b, Merge("w", "lora_A", 3.0, shape, transposed))
    change = np.zeros(w.shape)
    for index in np.ndindex(*w.shape):
        change[index] = sum(b[index[0], r].item() * a[(r, *index[1:])] for r in range(2))
    expected = w + 3.0 / 2 * change
    assert got.dtype == np.float32
    assert np.abs((got.T if transposed else got) - expected).max() < 1e-6


def test_the_merged_model_is_the_original_one_with_other_weights(
    session: onnxft.TrainSession, merged: np.ndarray
) -> None:
    (own,) = session.predict({"image": IMAGE}).values()
    assert np.abs(own - merged).max() < 1e-5
    names = {node.name for node in ort.InferenceSession(session.directory / "infer.onnx").get_inputs()}
    assert names == {"image"}


def test_averages_are_merged_too(artifact: Path, tmp_path: Path) -> None:
    with train(artifact) as session:
        session.average(0.5)
        session.step({"image": IMAGE[:4], "labels": np.array([4, 0, 1, 3])}, lr=0.05)
        session.average(0.5)
        with session.averaged():
            session.export_model(tmp_path / "model.onnx")
            (own,) = session.predict({"image": IMAGE}).values()
    (outputs,) = ort.InferenceSession(tmp_path / "model.onnx").run(None, {"image": IMAGE})
    assert np.abs(own - outputs).max() < 1e-5


# ----- ONNX Runtime -----


@pytest.fixture
def active(adapter: Path) -> Iterator[ort.RunOptions]:
    loaded, options = ort.LoraAdapter(), ort.RunOptions()
    loaded.Load(str(adapter / "adapter.onnx_adapter"))
    options.add_active_adapter(loaded)
    yield options
    del options


def test_onnx_runtime_runs_the_adapter(artifact: Path, active: ort.RunOptions, merged: np.ndarray) -> None:
    stock = ort.InferenceSession(artifact / "infer_adapter.onnx")
    assert [x.name for x in stock.get_inputs()] == ["image"]
    (outputs,) = stock.run(None, {"image": IMAGE}, active)
    assert np.abs(outputs - merged).max() < 1e-5
    (before,) = ort.InferenceSession(artifact / "infer.onnx").run(None, {"image": IMAGE})
    (without,) = stock.run(None, {"image": IMAGE})
    assert np.abs(without - before).max() < 1e-5


def test_a_binding_ignores_adapters_and_takes_their_values_as_inputs(
    session: onnxft.TrainSession, active: ort.RunOptions, merged: np.ndarray
) -> None:
    """S9 of the known traps: should the first half fail, ONNX Runtime has learnt it, and the warning can go."""
    stock = ort.InferenceSession(session.directory / "infer_adapter.onnx")
    (before,) = stock.run(None, {"image": IMAGE})
    binding = stock.io_binding()
    binding.bind_cpu_input("image", IMAGE)
    binding.bind_output(stock.get_outputs()[0].name)
    stock.run_with_iobinding(binding, active)
    assert np.array_equal(binding.copy_outputs_to_cpu()[0], before)
    for name, value in session.parameters.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value))
    stock.run_with_iobinding(binding)
    assert np.abs(binding.copy_outputs_to_cpu()[0] - merged).max() < 1e-5


# ----- peft -----


def test_peft_loads_it_onto_the_original_model(adapter: Path, merged: np.ndarray) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed here")
    net, _ = adaptable()
    assert isinstance(net, Adaptable)
    loaded = peft.PeftModel.from_pretrained(net.eval(), str(adapter)).eval()
    with torch.no_grad():
        assert np.abs(loaded(torch.from_numpy(IMAGE)).numpy() - merged).max() < 1e-5
        assert np.abs(loaded.merge_and_unload()(torch.from_numpy(IMAGE)).numpy() - merged).max() < 1e-5


def test_what_peft_trained_is_read(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed here")
    net, _ = adaptable()
    config = peft.LoraConfig(
        r=3, lora_alpha=6, target_modules=["conv", "point", "layers.0.0", "layers.2.2"], modules_to_save=["head"],
        init_lora_weights=False,
    )  # fmt: skip
    trained = peft.get_peft_model(net.eval(), config).eval()
    with torch.no_grad():
        trained.base_model.model.head.modules_to_save["default"].weight.mul_(1.7)
        expected = trained(torch.from_numpy(IMAGE)).numpy()
    trained.save_pretrained(str(tmp_path / "peft"))
    targets = [f"{name}.weight" for name in config.target_modules]
    artifact = export(
        tmp_path / "artifact", method="lora:3,head", trainable=None, lora_targets=targets, lora_alpha=None
    )
    with onnxft.TrainSession(artifact, threads=1) as session:
        session.load_adapter(tmp_path / "peft")
        (outputs,) = session.predict({"image": IMAGE}).values()
    assert np.abs(outputs - expected).max() < 1e-5


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_peft_loads_transposed_weights_of_transformers(tmp_path: Path) -> None:
    """GPT-2 stores its weights as (in, out)."""
    peft = pytest.importorskip("peft", reason="peft is not installed here")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed here")
    torch.manual_seed(3)
    config = transformers.GPT2Config(
        vocab_size=31, n_positions=128, n_embd=12, n_layer=2, n_head=3, num_labels=4, pad_token_id=0,
        bos_token_id=1, eos_token_id=1,
        attn_implementation="eager", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    transformers.GPT2ForSequenceClassification(config).eval().save_pretrained(tmp_path / "gpt2")
    artifact = onnxft.export(
        str(tmp_path / "gpt2"),
        directory=tmp_path / "artifact",
        method="lora:2,head",
        dimensions={"sequence": 6},
        batch_size=3,
    )
    ids = np.arange(18).reshape(3, 6) + 1
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    with onnxft.TrainSession(artifact, threads=1) as session:
        assert all(a.merge is not None and a.merge.transposed for a, _ in session.manifest.adapters.values())
        session.step({**inputs, "labels": np.array([0, 3, 1])}, lr=0.1)
        (own,) = session.predict(inputs).values()
        session.export_adapter(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["fan_in_fan_out"] is True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        base = transformers.GPT2ForSequenceClassification.from_pretrained(tmp_path / "gpt2").eval()
    loaded = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        logits = loaded(**{name: torch.from_numpy(value) for name, value in inputs.items()}).logits.numpy()
    assert np.abs(logits - own).max() < 1e-5


def test_modules_that_are_trained_in_part_are_not_saved_as_a_whole(adapter: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["head"]
    assert config["r"] == 3
    assert config["lora_alpha"] == 4.5
    keys = load_file(adapter / "adapter_model.safetensors")
    assert {k for k in keys if "lora" not in k and "layers" not in k} == {
        "base_model.model.head.weight", "base_model.model.head.bias", "base_model.model.token",
        "base_model.model.norm.bias", "base_model.model.depth.bias", "base_model.model.conv.base_layer.bias",
    }  # fmt: skip


# ----- read -----


@pytest.mark.parametrize("file", ["", "adapter.onnx_adapter"])
def test_a_session_goes_on_from_an_adapter(artifact: Path, adapter: Path, merged: np.ndarray, file: str) -> None:
    with onnxft.TrainSession(artifact, threads=1) as other:
        other.load_adapter(adapter / file)
        (outputs,) = other.predict({"image": IMAGE}).values()
    assert np.abs(outputs - merged).max() < 1e-5


def change_config(folder: Path, **changes: Any) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def change_tensors(folder: Path, change: Any) -> Path:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    return folder


def remove(folder: Path, name: str) -> Path:
    (folder / name).unlink()
    return folder


def overwrite(path: Path) -> Path:
    path.write_bytes(b"no adapter at all")
    return path


A = "base_model.model.point.lora_A.weight"
UNFIT = {
    "nowhere": (lambda f: f / "nowhere", "nowhere' is no adapter. Name a folder with adapter_config.json"),
    "no file": (lambda f: f / "no.onnx_adapter", "there is no adapter"),
    "damaged": (lambda f: overwrite(f / "adapter.onnx_adapter"), "adapter.onnx_adapter' is damaged"),
    "no config": (lambda f: remove(f, "adapter_config.json"), "is not an adapter of peft"),
    "no weights": (lambda f: remove(f, "adapter_model.safetensors"), "is not an adapter of peft"),
    "no safetensors": (lambda f: overwrite(f / "adapter_model.safetensors").parent, "is damaged, or of a type"),
    "no json": (lambda f: overwrite(f / "adapter_config.json").parent, "is damaged"),
    "kind": (lambda f: change_config(f, peft_type="IA3"), "is of the kind 'IA3'; LORA alone is read"),
    "rank": (lambda f: change_config(f, r=4), "has r 4, and 'artifact' was exported with 3. Export with --method"),
    "alpha": (lambda f: change_config(f, lora_alpha=8), "has lora_alpha 8, and 'artifact' was exported with 4.5"),
    "dora": (lambda f: change_config(f, use_dora=True), "has use_dora True, with which it computes otherwise"),
    "rslora": (lambda f: change_config(f, use_rslora=True), "has use_rslora True"),
    "missing": (lambda f: change_tensors(f, lambda t: t.pop(A)), "has no 'point.weight.lora_A', which 'artifact'"),
    "unknown": (
        lambda f: change_tensors(f, lambda t: t.update({A.replace("point", "pont"): t[A]})),
        "has 'pont.weight.lora_A', which is not trained in 'artifact' and would be lost. Did you mean",
    ),
    "shape": (lambda f: change_tensors(f, lambda t: t.update({A: t[A][:, :4].copy()})), "the shape [3, 6, 1, 1], not"),
    "nan": (lambda f: change_tensors(f, lambda t: t.update({A: t[A] * np.nan})), "must be finite"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNFIT)
def test_what_does_not_fit_is_an_error_and_changes_nothing(artifact: Path, adapter: Path, case: str) -> None:
    make, words = UNFIT[case]
    with onnxft.TrainSession(artifact, threads=1) as other:
        before = other.parameters
        with pytest.raises(ArtifactError) as err:
            other.load_adapter(make(adapter))
        assert words in str(err.value)
        assert all(np.array_equal(value, before[name]) for name, value in other.parameters.items())


@pytest.mark.parametrize("file", ["", "adapter.onnx_adapter"])
def test_an_adapter_of_other_weights_is_an_error(tmp_path: Path, adapter: Path, file: str) -> None:
    """Shapes, rank and scale are the same; the numbers that it was trained with are not."""
    net, example = adaptable()
    with torch.no_grad():
        net.point.weight.mul_(1.01)
    other = onnxft.export(net, example, tmp_path / "other", **OPTIONS)
    with (
        onnxft.TrainSession(other, threads=1) as session,
        pytest.raises(ArtifactError, match=r"belongs to another model|was not written for 'other'"),
    ):
        session.load_adapter(adapter / file)


def test_an_artifact_without_adapters_has_none(tmp_path: Path) -> None:
    artifact = onnxft.export(save_mlp(tmp_path / "m.onnx"), directory=tmp_path / "a", trainable=["fc2_*"])
    assert not (artifact / "infer_adapter.onnx").exists()
    with onnxft.TrainSession(artifact, threads=1) as session:
        for call in (session.export_adapter, session.load_adapter):
            with pytest.raises(ArtifactError, match=r"'a' has no adapter\. Export it with --method lora"):
                call(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_disk_that_takes_no_adapter_is_an_error(
    session: onnxft.TrainSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OSError, match="nowhere"):  # ONNX Runtime itself says RuntimeError
        write_onnx_adapter(tmp_path / "nowhere" / "adapter.onnx_adapter", {"a": random(2, 3)}, "0" * 64)

    def full(path: Path, *rest: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("onnxft.runtime.adapters.adapter.write_onnx_adapter", full)
    with pytest.raises(WriteError, match=r"adapter' cannot be written: No space left on device\. Nothing was left"):
        session.export_adapter(tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []


def test_nothing_else_is_overwritten(session: onnxft.TrainSession, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(ArtifactError, match="it would be deleted"):
        session.export_adapter(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all of it"


def test_a_changed_adapter_graph_is_found(artifact: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(artifact, copy)
    (copy / "infer_adapter.onnx").write_bytes((copy / "infer_adapter.onnx").read_bytes() + b"\0")
    with pytest.raises(ArtifactError, match=r"infer_adapter\.onnx' does not match its sha256"):
        onnxft.TrainSession(copy)
