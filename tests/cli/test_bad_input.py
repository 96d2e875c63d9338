"""What a user can get wrong, through `main`: the words of the message, its exit code, and no file left or changed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hostile_models import HIDING_PLACES, external, model
from onnx import TensorProto, helper, numpy_helper
from onnx_models import random, save
from safetensors.numpy import load_file, save_file

from onnxft.cli.main import main
from onnxft.errors import ExitStatus
from onnxft.files import sha256

MODELS = Path(__file__).parent.parent / "models.py"
Prepare = Callable[[], Any]
ROWS = {
    "x": np.random.default_rng(0).normal(size=(20, 7)).astype(np.float32),
    "labels": np.arange(20) % 5,
}


@pytest.fixture(autouse=True)
def working_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def artifact(exported: Callable[..., Path]) -> None:
    """`mlp`: 7 inputs `x`, 5 classes, batches of 16; and `d.npz`, which fits it."""
    shutil.copytree(exported("mlp"), "mlp")
    data()


def snapshot() -> dict[str, str]:
    """{name: SHA-256, or what it is} of everything in the working directory."""
    found = {}
    for path in sorted(Path.cwd().rglob("*")):
        kind = f"link to {path.readlink()}" if path.is_symlink() else "directory"
        found[str(path.relative_to(Path.cwd()))] = sha256(path) if path.is_file() else kind
    return found


def refused(
    arguments: list[str], code: ExitStatus, words: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:  # fmt: skip
    """Run `onnxft ARGUMENTS`, which must end so and change nothing."""
    before = snapshot()
    monkeypatch.setattr(sys, "argv", ["onnxft", *arguments])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    with pytest.raises(SystemExit) as ended:
        main()
    err = capsys.readouterr().err
    assert words in err
    assert ended.value.code == code, err
    assert "Traceback" not in err
    assert snapshot() == before


# ----- models


def write(name: str, content: str | bytes) -> Prepare:
    return lambda: Path(name).write_bytes(content.encode() if isinstance(content, str) else content)


def mlp_file() -> None:
    save("g (float[N,3] x) => (float[N,2] y) { y = MatMul(x, w) }", Path("net.onnx"), w=random(3, 2))


def truncated_model() -> None:
    mlp_file()
    content = Path("net.onnx").read_bytes()
    Path("net.onnx").write_bytes(content[: len(content) - 9])


def integer_model() -> None:
    proto = helper.make_model(
        helper.make_graph(
            [helper.make_node("Add", ["x", "w"], ["y"])], "g",
            [helper.make_tensor_value_info("x", TensorProto.INT64, ["N", 3])],
            [helper.make_tensor_value_info("y", TensorProto.INT64, ["N", 3])],
            [numpy_helper.from_array(np.arange(3), "w")],
        ),
        opset_imports=[helper.make_opsetid("", 18)], ir_version=10,
    )  # fmt: skip
    Path("net.onnx").write_bytes(proto.SerializeToString())


def leading_out(location: str) -> Prepare:
    def prepare() -> None:
        Path("secret").write_bytes(bytes(24))
        Path("net.onnx").write_bytes(model(external("w", location)).SerializeToString())

    return prepare


def linked_weights() -> None:
    leading_out("w.bin")()
    Path("w.bin").symlink_to("secret")


def hard_linked_weights() -> None:
    leading_out("w.bin")()
    os.link("secret", "w.bin")


EXPORTS = {
    "missing file": (lambda: None, ["nowhere.onnx"], ExitStatus.MODEL, "the model file 'nowhere.onnx' does not exist"),
    "truncated file": (truncated_model, ["net.onnx"], ExitStatus.MODEL, "'net.onnx'"),
    "empty file": (write("net.onnx", b""), ["net.onnx"], ExitStatus.MODEL, "'net.onnx'"),
    "text": (write("net.onnx", "a text of some length\n"), ["net.onnx"], ExitStatus.MODEL, "'net.onnx'"),
    "a picture": (write("net.onnx", b"\x89PNG\r\n\x1a\n" + bytes(99)), ["net.onnx"], ExitStatus.MODEL, "'net.onnx'"),
    "no floating-point weights": (
        integer_model, ["net.onnx", "--loss", "mse"], ExitStatus.MODEL, "has no floating-point weights",
    ),
    "no such parameter": (
        mlp_file, ["net.onnx", "--loss", "mse", "--train", "head.*"], ExitStatus.MODEL,
        "'head.*' matches no parameter of 'net'",
    ),
    "weights elsewhere": (leading_out("../secret"), ["net.onnx"], ExitStatus.MODEL, "'../secret'"),
    "weights at a root": (leading_out("/etc/passwd"), ["net.onnx"], ExitStatus.MODEL, "'/etc/passwd'"),
    "linked weights": (linked_weights, ["net.onnx"], ExitStatus.MODEL, "w.bin"),
    "hard-linked weights": (hard_linked_weights, ["net.onnx"], ExitStatus.MODEL, "w.bin"),
    "weights that are missing": (leading_out("w.bin"), ["net.onnx"], ExitStatus.MODEL, "w.bin"),
    "a factory that raises": (
        write("f.py", "def make():\n    raise RuntimeError('no weights today')\n"), ["f.py:make"], ExitStatus.MODEL,
        "the factory 'f.py:make' raised RuntimeError: no weights today",
    ),
    "a factory of something else": (
        write("f.py", "def make():\n    return 3\n"), ["f.py:make"], ExitStatus.MODEL,
        "must return (module, example_inputs), not int",
    ),
    "a file that does not import": (
        write("f.py", "import nothing_of_this_name\n"), ["f.py:make"], ExitStatus.MODEL, "nothing_of_this_name",
    ),
    "malformed YAML": (
        write("c.yaml", "loss: [mse\n"), ["net.onnx", "--config", "c.yaml"], ExitStatus.CONFIG, "'c.yaml' is not YAML",
    ),
    "a place in use": (
        lambda: (mlp_file(), Path("mine").mkdir(), Path("mine/photo").touch()),
        ["net.onnx", "--loss", "mse", "--out", "mine"], ExitStatus.ARTIFACT, "'mine' exists and holds no manifest.json",
    ),
    "a place below a file": (
        lambda: (mlp_file(), Path("mine").touch()),
        ["net.onnx", "--loss", "mse", "--out", "mine/net"], ExitStatus.WRITE, "cannot be written: 'mine' is a file",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", EXPORTS)
def test_a_bad_model_is_refused(case: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    prepare, arguments, code, words = EXPORTS[case]
    prepare()
    refused(["export", *arguments], code, words, monkeypatch, capsys)


# ----- data


def data(**changed: Any) -> None:
    """`d.npz`; None leaves an array out."""
    np.savez("d.npz", **{n: v for n, v in {**ROWS, **changed}.items() if v is not None})


def with_value(name: str, where: Any, value: Any) -> Prepare:
    def prepare() -> None:
        array = ROWS[name].copy()
        array[where] = value
        data(**{name: array})

    return prepare


def cut_data() -> None:
    content = Path("d.npz").read_bytes()
    Path("d.npz").write_bytes(content[: len(content) // 2])


def pickled_data() -> None:
    data(x=np.array([{"a": 1}] * 20, dtype=object))


def pictures(*names: str, content: bytes = b"no picture") -> Prepare:
    def prepare() -> None:
        for name in names:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_bytes(content)

    return prepare


TRAIN = ["train", "mlp", "--data", "d.npz", "--threads", "1"]
BAD_DATA: dict[str, tuple[Prepare, list[str], ExitStatus, str]] = {
    "missing": (lambda: None, ["--data", "none.npz"], ExitStatus.DATA, "there is no data file 'none.npz'"),
    "truncated": (cut_data, [], ExitStatus.DATA, "'d.npz' cannot be read as .npz"),
    "another format": (write("d.npz", "x,labels\n"), [], ExitStatus.DATA, "'d.npz' cannot be read as .npz"),
    "of an unknown kind": (write("d.txt", "x"), ["--data", "d.txt"], ExitStatus.DATA, "'d.txt' is no data"),
    "Python objects": (pickled_data, [], ExitStatus.DATA, "'d.npz' cannot be read as .npz"),
    "empty": (lambda: data(x=ROWS["x"][:0], labels=ROWS["labels"][:0]), [], ExitStatus.DATA, "'x' has 0 rows"),
    "no array": (lambda: np.savez("d.npz"), [], ExitStatus.DATA, "'d.npz' holds no array"),
    "unequal rows": (lambda: data(labels=ROWS["labels"][:9]), [], ExitStatus.DATA, "equally many rows"),
    "another name": (lambda: data(x=None, X=ROWS["x"]), [], ExitStatus.DATA, "the model has no input 'X'"),
    "no labels": (lambda: data(labels=None), [], ExitStatus.DATA, "lacks 'labels'"),
    "another shape": (lambda: data(x=ROWS["x"][:, :6]), [], ExitStatus.DATA, "'x' has the shape [20, 6]"),
    "another type": (lambda: data(x=np.full((20, 7), "a")), [], ExitStatus.DATA, "'x'"),
    "labels of another type": (lambda: data(labels=ROWS["labels"] + 0.5), [], ExitStatus.DATA, "'labels'"),
    "label beyond the classes": (
        with_value("labels", 7, 5), [], ExitStatus.DATA, "'labels' has the value 5 at row 7; classes are 0 to 4",
    ),
    "label -1": (
        with_value("labels", 3, -1), [], ExitStatus.DATA, "'labels' has the value -1 at row 3; classes are 0 to 4",
    ),
    "NaN": (with_value("x", (4, 2), np.nan), [], ExitStatus.DATA, "'x' has the value nan at [4, 2]"),
    "infinity": (with_value("x", (19, 0), np.inf), [], ExitStatus.DATA, "'x' has the value inf at [19, 0]"),
    "batch larger than the data": (
        lambda: None, ["--batch-size", "21"], ExitStatus.DATA, "'d.npz' has 20 rows, fewer than the batch size 21",
    ),
    "validation data that does not fit": (
        lambda: np.savez("v.npz", x=ROWS["x"]), ["--val", "v.npz"], ExitStatus.DATA,
        "'v.npz': the batch lacks 'labels'",
    ),
    "a table without the column": (
        write("d.csv", "a,b\n1,2\n"), ["--data", "d.csv", "--input-column", "c"], ExitStatus.DATA,
        "'d.csv' has no column 'labels' or 'label' (it has 'a', 'b')",
    ),
    "an empty table": (write("d.csv", ""), ["--data", "d.csv"], ExitStatus.DATA, "'d.csv'"),
    "an empty folder": (lambda: Path("d").mkdir(), ["--data", "d"], ExitStatus.DATA, "'d'"),
    "code that raises": (
        write("rows.py", "def rows(epoch):\n    raise RuntimeError('no rows today')\n    yield\n"),
        ["--data", "rows.py:rows"], ExitStatus.DATA, "raised RuntimeError",
    ),
    "code that is not there": (write("rows.py", ""), ["--data", "rows.py:rows"], ExitStatus.DATA, "'rows'"),
}  # fmt: skip


@pytest.mark.usefixtures("artifact")
@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_is_refused(case: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    prepare, arguments, code, words = BAD_DATA[case]
    prepare()
    refused([*TRAIN, *arguments], code, words, monkeypatch, capsys)


# ----- options and configuration


def weights(change: Callable[[dict[str, Any]], Any]) -> Prepare:
    """`w.safetensors`: the artifact's own parameters after `change`."""

    def prepare() -> None:
        values = load_file("mlp/parameters.safetensors")
        change(values)
        save_file(values, "w.safetensors")

    return prepare


def cut_weights() -> None:
    content = Path("mlp/parameters.safetensors").read_bytes()
    Path("w.safetensors").write_bytes(content[:-5])


def begun_run() -> None:
    Path("run").mkdir()
    Path("run/config.yaml").write_text("lr: 0.001\nartifact: mlp\ndata: d.npz\nthreads: 1\n", encoding="utf-8")


WEIGHTS = ["--weights", "w.safetensors"]
BAD_OPTIONS: dict[str, tuple[Prepare, list[str], ExitStatus, str]] = {
    "unknown option": (lambda: None, ["--epoch", "3"], ExitStatus.USAGE, "--epoch"),
    "unknown schedule": (lambda: None, ["--schedule", "cosin"], ExitStatus.CONFIG, "Did you mean 'cosine'?"),
    "rate": (lambda: None, ["--lr", "nan"], ExitStatus.CONFIG, "lr is nan"),
    "an option without its schedule": (lambda: None, ["--gamma", "0.5"], ExitStatus.CONFIG, "gamma"),
    "absent provider": (lambda: None, ["--provider", "cuda"], ExitStatus.PROVIDER, "cuda"),
    "unknown provider": (lambda: None, ["--provider", "cup"], ExitStatus.PROVIDER, "Did you mean 'cpu'?"),
    "unknown precision": (lambda: None, ["--precision", "half"], ExitStatus.CONFIG, "half"),
    "precision that is not there": (
        lambda: None, ["--precision", "bfloat16"], ExitStatus.PROVIDER, "'cpu' does not compute in bfloat16",
    ),
    "device that is not there": (lambda: None, ["--device", "1"], ExitStatus.PROVIDER, "'cpu' has one device"),
    "negative device": (lambda: None, ["--device", "-1"], ExitStatus.CONFIG, "device is -1"),
    "provider option of no provider": (
        lambda: None, ["--provider-option", "fast=1"], ExitStatus.PROVIDER, "'cpu' has no option 'fast'",
    ),
    "provider option of another form": (
        lambda: None, ["--provider-option", "fast"], ExitStatus.USAGE, "'fast' is not of the form KEY=VALUE",
    ),
    "malformed YAML": (
        write("c.yaml", "lr: [1\n"), ["--config", "c.yaml"], ExitStatus.CONFIG, "'c.yaml' is not YAML",
    ),
    "YAML with a tag": (
        write("c.yaml", "lr: !!python/object/apply:os.getcwd []\n"), ["--config", "c.yaml"], ExitStatus.CONFIG,
        "'c.yaml' is not YAML",
    ),
    "YAML with aliases": (
        write("c.yaml", "classes: &a [x]\naugment: *a\n"), ["--config", "c.yaml"], ExitStatus.CONFIG, "aliases",
    ),
    "YAML with a key twice": (
        write("c.yaml", "lr: 1\nlr: 2\n"), ["--config", "c.yaml"], ExitStatus.CONFIG, "stands twice",
    ),
    "YAML that is too large": (
        write("c.yaml", "#" * 2**21), ["--config", "c.yaml"], ExitStatus.CONFIG, "'c.yaml' has more than",
    ),
    "YAML of a date that is none": (
        write("c.yaml", "lr: 2024-13-45\n"), ["--config", "c.yaml"], ExitStatus.CONFIG, "'c.yaml'",
    ),
    "an unknown key": (write("c.yaml", "epoch: 3\n"), ["--config", "c.yaml"], ExitStatus.CONFIG, "option 'epoch'"),
    "no weights file": (lambda: None, ["--weights", "none.safetensors"], ExitStatus.ARTIFACT, "none.safetensors"),
    "a run without weights": (lambda: Path("r").mkdir(), ["--weights", "r"], ExitStatus.ARTIFACT, "'r/weights/best"),
    "truncated weights": (cut_weights, WEIGHTS, ExitStatus.ARTIFACT, "'w.safetensors' cannot be read"),
    "weights of a text": (write("w.safetensors", "no"), WEIGHTS, ExitStatus.ARTIFACT, "'w.safetensors' cannot be read"),
    "weights that are NaN": (
        weights(lambda v: v["fc1.bias"].fill(np.nan)), WEIGHTS, ExitStatus.ARTIFACT, "'fc1.bias' must be finite",
    ),
    "weights of another shape": (
        weights(lambda v: v.update({"fc1.bias": np.zeros(3, np.float32)})), WEIGHTS, ExitStatus.ARTIFACT, "'fc1.bias'",
    ),
    "weights of another type": (
        weights(lambda v: v.update({"fc1.bias": np.zeros(11, np.int64)})), WEIGHTS, ExitStatus.ARTIFACT, "'fc1.bias'",
    ),
    "weights of another name": (
        weights(lambda v: v.update({"fc9.bias": v.pop("fc1.bias")})), WEIGHTS, ExitStatus.ARTIFACT, "'fc9.bias'",
    ),
    "no run to resume": (lambda: None, ["--resume", "--run", "run"], ExitStatus.ARTIFACT, "no run to resume in 'run'"),
    "another rate than the run's": (
        begun_run, ["--resume", "--run", "run", "--lr", "0.5"], ExitStatus.CONFIG, "lr 0.001",
    ),
    "a run in use": (begun_run, ["--run", "run"], ExitStatus.CONFIG, "'run' exists already"),
    "a run below a file": (
        write("file", ""), ["--run", "file/run"], ExitStatus.WRITE, "cannot be written: Not a directory",
    ),
}  # fmt: skip


@pytest.mark.usefixtures("artifact")
@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options_are_refused(case: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    prepare, arguments, code, words = BAD_OPTIONS[case]
    prepare()
    refused([*TRAIN, *arguments], code, words, monkeypatch, capsys)


@pytest.mark.usefixtures("artifact")
@pytest.mark.parametrize("case", ["label -1", "NaN", "missing", "batch larger than the data"])
def test_a_range_test_refuses_the_same_data(case: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    prepare, arguments, code, words = BAD_DATA[case]
    prepare()
    refused([*TRAIN, "--find-lr", *arguments], code, words, monkeypatch, capsys)


@pytest.mark.usefixtures("artifact")
@pytest.mark.parametrize("case", ["rate", "unknown provider", "weights that are NaN", "a run in use"])
def test_a_range_test_refuses_the_same_options(case: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    prepare, arguments, code, words = BAD_OPTIONS[case]
    prepare()
    refused([*TRAIN, "--find-lr", *arguments], code, words, monkeypatch, capsys)


# ----- checkpoints


@pytest.fixture(scope="module")
def runs(exported: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`mlp`, `d.npz`, `run` of two epochs and `earlier`, the same of one."""
    import onnxft

    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr("onnxft.training.records.can_plot", lambda: False)
        shutil.copytree(exported("mlp"), "mlp")
        data()
        for name, epochs in (("run", 2), ("earlier", 1)):
            options = {"epochs": epochs, "threads": 1, "ema": 0.5}
            onnxft.train("mlp", "d.npz", options, run=name, progress=False)
    return root


CHECKPOINT = Path("run/checkpoints/last")
CHECKED = ("loop.json", "checkpoint.json", "complete.json", *(
    f"{name}.safetensors" for name in ("parameters", "state", "averages")
))  # fmt: skip


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def earlier(path: Path) -> None:
    """The file as it was at the end of the first epoch, whole as it is."""
    shutil.copy("earlier" / path.relative_to("run"), path)


RESUME = ["train", "--resume", "--run", "run", "--epochs", "3"]


@pytest.mark.parametrize("damage", [flip, cut, earlier, Path.unlink])
@pytest.mark.parametrize("name", CHECKED)
def test_a_checkpoint_that_is_not_of_one_moment_is_refused(
    name: str, damage: Callable[[Path], Any], runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    shutil.copytree(runs, Path.cwd(), dirs_exist_ok=True)
    damage(CHECKPOINT / name)
    refused(RESUME, ExitStatus.ARTIFACT, str(CHECKPOINT), monkeypatch, capsys)


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda: (CHECKPOINT / "complete.json").write_text("{}"), "damaged or of another moment"),
        (lambda: cut(Path("run/results.csv")), "'run/results.csv' was changed since the checkpoint"),
        (lambda: Path("run/results.csv").write_text("epoch\n0\n2\n"), "has not one row for each epoch from 0 to 2"),
        (lambda: Path("run/results.csv").write_text("no table"), "'run/results.csv'"),
        (lambda: Path("run/timings.csv").unlink(), "'run/timings.csv' is missing or damaged"),
        (lambda: Path("run/config.yaml").unlink(), "no run to resume in 'run'"),
        (lambda: with_value("x", (0, 0), 9.0)(), "other contents of 'data'"),
        (lambda: manifest(lambda m: m.update(name="another"))(), "other contents of 'artifact'"),
    ],
    ids=["unlisted", "cut", "row", "text", "timings", "config", "data", "artifact"],
)
def test_a_run_that_was_changed_is_not_resumed(
    prepare: Prepare, words: str, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    shutil.copytree(runs, Path.cwd(), dirs_exist_ok=True)
    prepare()
    refused(RESUME, ExitStatus.ARTIFACT, words, monkeypatch, capsys)


def test_a_run_that_was_not_changed_is_resumed(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(runs, Path.cwd(), dirs_exist_ok=True)
    monkeypatch.setattr(sys, "argv", ["onnxft", *RESUME])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == ExitStatus.OK, capsys.readouterr().err
    assert len(Path("run/results.csv").read_text(encoding="utf-8").splitlines()) == 5


# ----- artifacts


def manifest(change: Callable[[dict[str, Any]], Any]) -> Prepare:
    """Rewrite manifest.json after `change`."""

    def damage() -> None:
        values = json.loads(Path("mlp/manifest.json").read_text(encoding="utf-8"))
        change(values)
        Path("mlp/manifest.json").write_text(json.dumps(values), encoding="utf-8")

    return damage


def changed_graph() -> None:
    content = bytearray(Path("mlp/train.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    Path("mlp/train.onnx").write_bytes(content)


def soft_link() -> None:
    Path("mlp/train.onnx").rename("outside.onnx")
    Path("mlp/train.onnx").symlink_to(Path("outside.onnx").resolve())


def unlisted_link() -> None:
    Path("secret").write_bytes(b"secret")
    Path("mlp/weights.bin").symlink_to(Path("secret").resolve())


def linked_folder() -> None:
    Path("elsewhere").mkdir()
    Path("mlp/data").symlink_to(Path("elsewhere").resolve(), target_is_directory=True)


HOSTILE: dict[str, tuple[Prepare, str]] = {
    "no artifact": (lambda: shutil.rmtree("mlp"), "is not an artifact"),
    "no manifest": (lambda: Path("mlp/manifest.json").unlink(), "it holds no manifest.json"),
    "truncated manifest": (write("mlp/manifest.json", '{"name": "mlp", '), "is not a manifest of onnxft"),
    "newer schema": (manifest(lambda m: m.update(schema_version=99)), "schema version 99; this onnxft reads version"),
    "graph that does not match its hash": (changed_graph, "train.onnx' does not match its sha256"),
    "missing file": (lambda: Path("mlp/frozen.safetensors").unlink(), "frozen.safetensors' is missing"),
    "link": (soft_link, "train.onnx' is a link or no regular file"),
    "unlisted link": (unlisted_link, "weights.bin' is a link"),
    "linked folder": (linked_folder, "data' is a link"),
    "hard link": (lambda: os.link("mlp/update.onnx", "second"), "update.onnx' is a link"),
    "graph above": (manifest(lambda m: m["graphs"]["eval"].update(file="../x")), "names the file '../x'"),
    "file above": (manifest(lambda m: m["files"].update({"../x": "0"})), "'../x' leaves the artifact directory"),
    "file at a root": (manifest(lambda m: m["files"].update({"/etc/passwd": "0"})), "leaves the artifact directory"),
    "graph without hash": (manifest(lambda m: m["files"].pop("train.onnx")), "'train.onnx', which has no sha256"),
    "control characters": (manifest(lambda m: m.update(name="a\x1b[31mb")), "has control characters"),
    "control characters in a class": (manifest(lambda m: m.update(classes=["a\r", *"bcde"])), "has control characters"),
    "control characters in a parameter": (
        manifest(lambda m: m["parameters"][0].update(name="fc1\x07")), "has control characters",
    ),
    "a shape beyond memory": (
        manifest(lambda m: m["graphs"]["train"]["inputs"][0].update(shape=["batch", 2**40])), "more than the",
    ),
}  # fmt: skip


@pytest.mark.usefixtures("artifact")
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_artifact_is_refused(case: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    prepare, words = HOSTILE[case]
    prepare()
    refused(TRAIN, ExitStatus.ARTIFACT, words, monkeypatch, capsys)


@pytest.mark.usefixtures("artifact")
@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "unlisted.bin"])
@pytest.mark.parametrize("place", HIDING_PLACES)
def test_a_graph_that_reads_elsewhere_is_refused(
    place: Callable[[TensorProto], onnx.ModelProto], location: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    Path("secret").write_bytes(bytes(24))
    hostile = place(external("hidden", location))
    Path("mlp/train.onnx").write_bytes(hostile.SerializeToString())
    manifest(lambda m: m["files"].update({"train.onnx": sha256(Path("mlp/train.onnx"))}))()
    words = f"tensor 'hidden' of 'mlp/train.onnx' lies in '{location}'"
    refused(TRAIN, ExitStatus.ARTIFACT, words, monkeypatch, capsys)


# ----- places that cannot be written


def fail_from(number: int, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the given fsync on, the system answers with an error."""
    calls = 0

    def fail(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls >= number:
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)


@pytest.mark.usefixtures("artifact")
@pytest.mark.skipif(os.geteuid() == 0, reason="everything is permitted to root")
def test_a_folder_that_is_read_only_is_named(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    Path("runs").mkdir(mode=0o555)
    refused(TRAIN, ExitStatus.WRITE, "cannot be written: Permission denied", monkeypatch, capsys)


@pytest.mark.usefixtures("artifact")
@pytest.mark.parametrize("number", [1, 5, 9, 14])
@pytest.mark.parametrize("error", ["ENOSPC", "EACCES", "EROFS", "EDQUOT"])
def test_a_run_that_cannot_be_written_leaves_nothing(
    error: str, number: int, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Any write before the first checkpoint."""
    code = getattr(errno, error)
    fail_from(number, code, monkeypatch)
    refused(TRAIN, ExitStatus.WRITE, f"cannot be written: {os.strerror(code)}", monkeypatch, capsys)


@pytest.mark.parametrize("number", [4, 7, 10])
def test_an_artifact_that_cannot_be_written_leaves_nothing(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    mlp_file()
    fail_from(number, errno.ENOSPC, monkeypatch)
    words = "'artifacts/net' cannot be written: No space left on device. Nothing was left there."
    refused(["export", "net.onnx", "--loss", "mse"], ExitStatus.WRITE, words, monkeypatch, capsys)
