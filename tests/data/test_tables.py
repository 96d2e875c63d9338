from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from data_manifests import manifest_of, picture_manifest

from onnxft.data import rows
from onnxft.data.options import DataOptions
from onnxft.data.prepare import prepare
from onnxft.data.tables import open_table
from onnxft.errors import ConfigError, DataError
from onnxft.manifest import Loss

SENSOR = {"x": ("float32", 2)}
CLASSES = manifest_of(SENSOR)
REGRESSION = manifest_of(SENSOR, ("float32", (2,)), loss=Loss("mse", "y"))


def table(tmp_path, text, name="t.csv", manifest=CLASSES, **options):
    path = tmp_path / name
    with open(path, "wb") as file:  # noqa: PTH123 (Path.open is replaced in one test)
        file.write(text if isinstance(text, bytes) else text.encode())
    return open_table(path, manifest, DataOptions(**options))


def lines(*values):
    return "".join(json.dumps(v) + "\n" for v in values)


def everything(data, manifest=CLASSES):
    data.check(manifest, manifest.dimensions)
    return data.read(np.arange(len(data)), sizes=manifest.dimensions, epoch=None)


NUMBERS = {
    "csv": ("t.csv", "a,b,label\n1,2.5,0\n-3e2, 4 ,2\n"),
    "marked, with carriage returns": ("t.csv", b"\xef\xbb\xbfa,b,label\r\n1,2.5,0\r\n-3e2,4,2\r\n"),
    "quoted, an empty line": ("t.csv", '"a","b","label"\n"1","2.5","0"\n\n"-300","4","2"\n'),
    "tabs": ("t.TSV", "a\tb\tlabel\n1\t2.5\t0\n-300\t4\t2\n"),
    "labels first": ("t.csv", "labels,a,b\n0,1,2.5\n2.0,-300,4\n"),
    "JSON": ("t.jsonl", '{"a": 1, "b": 2.5, "label": 0}\n\n{"label": 2, "b": 4, "a": -300.0, "more": null}\n'),
    "JSON, lists": ("t.jsonl", '\ufeff{"x": [1, 2.5], "labels": 0}\r\n{"labels": 2.0, "x": [-300, 4]}'),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_numbers(tmp_path, case):
    name, text = NUMBERS[case]
    data = table(tmp_path, text, name)
    batch = everything(data)
    assert (len(data), data.classes, data.lengths) == (2, (), None)
    assert batch["x"].tolist() == [[1, 2.5], [-300, 4]]
    assert batch["labels"].tolist() == data.labels.tolist() == [0, 2]
    assert data.read(np.array([1]), sizes={}, epoch=3)["x"].tolist() == [[-300, 4]]


def test_columns_may_be_named(tmp_path):
    two = manifest_of({"x": ("float32", 2), "z": ("int64",)})
    text = "id,b,a,what,k\n7,1,2,1,5\n8,3,4,0,6\n"
    batch = everything(
        table(tmp_path, text, manifest=two, input_columns={"x": ["a", "b"], "z": ["k"]}, label_columns=["what"]), two
    )
    assert batch["x"].tolist() == [[2, 1], [4, 3]]
    assert (batch["z"].tolist(), batch["labels"].tolist()) == ([5, 6], [1, 0])
    batch = everything(table(tmp_path, text, input_columns={"": ["k", "id"]}, label_columns=["what"]))
    assert batch["x"].tolist() == [[5, 7], [6, 8]]


def test_many_columns_fill_an_input_of_several_dimensions(tmp_path):
    windows = manifest_of({"x": ("float32", 2, 3)})
    data = table(tmp_path, "a,b,c,d,e,f,label\n1,2,3,4,5,6,0\n", manifest=windows,
                 input_columns={"x": list("abcdef")})  # fmt: skip
    assert everything(data, windows)["x"].tolist() == [[[1, 2, 3], [4, 5, 6]]]
    open_length = manifest_of({"x": ("float32", "time", 2)}, dimensions={"time": 3})
    data = table(tmp_path, lines({"x": [[1, 2], [3, 4], [5, 6]], "label": 1}), "t.jsonl", open_length)
    assert everything(data, open_length)["x"].tolist() == [[[1, 2], [3, 4], [5, 6]]]
    with pytest.raises(DataError, match=r"'x' has the shape \[1, 3, 2\]"):
        data.check(open_length, {"time": 4})


def test_regression_and_weights(tmp_path):
    data = table(tmp_path, "a,b,u,v,sample_weights\n1,2,0.5,-1,3\n", manifest=REGRESSION, label_columns=["v", "u"])
    batch = everything(data, REGRESSION)
    assert batch["labels"].tolist() == data.labels.tolist() == [[-1, 0.5]]
    assert batch["sample_weights"].tolist() == [3]
    data = table(tmp_path, lines({"x": [1, 2], "labels": [0.5, 1]}), "t.jsonl", REGRESSION)
    assert everything(data, REGRESSION)["labels"].tolist() == [[0.5, 1]]


def test_a_single_number_for_a_label(tmp_path):
    one = manifest_of(SENSOR, ("float32", ()), loss=Loss("mse", "y"))
    assert everything(table(tmp_path, "a,b,label\n1,2,0.5\n", manifest=one), one)["labels"].tolist() == [0.5]


def test_a_model_without_labels_needs_no_column_of_them(tmp_path):
    without = manifest_of(SENSOR, None)
    data = table(tmp_path, "a,b\n1,2\n", manifest=without)
    assert list(everything(data, without)) == ["x"]
    assert data.labels is None


NAMES = {
    # options, manifest, cells of the labels -> numbers, names
    "sorted": ({}, {}, ["good", "bad", "crack", "bad"], [2, 0, 1, 0], ("bad", "crack", "good")),
    "given": ({"classes": ["good", "crack", "bad"]}, {}, ["good", "bad"], [0, 2], ("good", "crack", "bad")),
    "manifest's": ({}, {"classes": ("c", "b", "a")}, ["a", "c"], [2, 0], ("c", "b", "a")),
    "given before the manifest's": (
        {"classes": ["x", "y", "z"]}, {"classes": ("c", "b", "a")}, ["z"], [2], ("x", "y", "z")),
    "numbers of named classes": ({"classes": ["c", "b", "a"]}, {}, ["2", "b"], [2, 1], ("c", "b", "a")),
    "names that are numbers": ({"classes": ["7", "3", "5"]}, {}, ["3", "7"], [1, 0], ("7", "3", "5")),
    "ignored": ({}, {"loss": Loss("cross_entropy", "y", 3, ignore_index=-100)}, ["1", "-100"], [1, -100], ()),
}  # fmt: skip


@pytest.mark.parametrize("case", NAMES)
def test_names_of_classes(tmp_path, case):
    options, manifest, cells, numbers, names = NAMES[case]
    made = manifest_of(SENSOR, **manifest)
    data = table(tmp_path, "a,b,label\n" + "".join(f"1,2,{c}\n" for c in cells), manifest=made, **options)
    assert everything(data, made)["labels"].tolist() == numbers
    assert data.classes == names


CSV = {
    "empty": ("", "t.csv' is empty: a header is expected"),
    "no rows": ("a,b,label\n", "has no rows below its header"),
    "twice": ("a,b,a,label\n1,2,3,0\n", "has the column 'a' twice"),
    "too few cells": ("a,b,label\n1,2,0\n1,2\n", "line 3 has 2 cells, its header 3: cells with separators"),
    "too many cells": ("a,b,label\n1,2,0,4\n", "line 2 has 4 cells, its header 3"),
    "decimal comma": ('a,b,label\n1,"2,5",0\n', "line 2 column 'b' holds '2,5', which is no finite number. Decimal"),
    "empty cell": ("a,b,label\n1,2,0\n1,,0\n", "line 3 column 'b' is empty: fill it or remove the line"),
    "blank cell": ("a,b,label\n1, ,0\n", "line 2 column 'b' is empty"),
    "NaN": ("a,b,label\n1,NaN,0\n", "line 2 column 'b' holds 'NaN', which is no finite number"),
    "infinite": ("a,b,label\n1,-inf,0\n", "line 2 column 'b' holds '-inf'"),
    "beyond float64": ("a,b,label\n1,1e999,0\n", "line 2 column 'b' holds '1e999'"),
    "beyond float64, whole": (f"a,b,label\n1,1{'0' * 400},0\n", "line 2 column 'b' holds '1000"),
    "beyond float32": ("a,b,label\n1,1e99,0\n", "'x' has the value 1e+99 at [0, 1] (row 0)"),
    "text": ("a,b,label\n1,2,0\n1,2\n", "line 3"),
    "word": ('a,b,label\n1,"2\n\n",0\n1,two,0\n', "line 5 column 'b' holds 'two'"),
    "Python's number": ("a,b,label\n1,1_000,0\n", "holds '1_000'"),
    "no label column": (
        "a,b,klass\n1,2,0\n",
        "has no column 'labels' or 'label' (it has 'a', 'b', 'klass'): name that",
    ),
    "semicolons": ("a;b;label\n1;2;0\n", "Its cells seem to be separated by semicolons"),
    "tabs": ("a\tb\tlabel\n1\t2\t0\n", "Its cells seem to be separated by tabs"),
    "too many numbers": (
        "a,b,c,label\n1,2,3,0\n",
        "line 2 gives 3 numbers ([3]) in 'a', 'b', 'c', and the model's 'x'",
    ),
    "no input column": ("label\n0\n", "which column of"),
    "label outside": ("a,b,label\n1,2,0\n1,2,3\n", "line 3 column 'label' has the label 3; classes are 0 to 2. Map"),
    "label -1": ("a,b,label\n1,2,0\n1,2,-1\n", "line 3 column 'label' has the label -1; classes are 0 to 2"),
    "empty label": ("a,b,label\n1,2,\n", "line 2 column 'label' is empty"),
    "fraction as label": ("a,b,label\n1,2,0.5\n", "has 1 classes ('0.5'), the model 3"),
    "too few names": ("a,b,label\n1,2,x\n1,2,y\n", "has 2 classes ('x', 'y'), the model 3: which number is whose"),
    "quote not closed": ('a,b,label\n1,"2,0\n1,2,0\n', "line 2 cannot be read: unexpected end of data"),
    "Latin-1": (b"a,b,label\n1,2,caf\xe9\n", "is not UTF-8"),
    "Latin-1 in the header": (b"a,b,caf\xe9\n1,2,3\n", "is not UTF-8"),
}


@pytest.mark.parametrize("case", CSV)
def test_bad_csv(tmp_path, case):
    text, words = CSV[case]
    with pytest.raises(DataError) as error:
        table(tmp_path, text).check(CLASSES, {})
    assert "t.csv'" in str(error.value)
    assert words in str(error.value)


JSON = {
    "empty": ("\n", "t.jsonl' is empty: one object a line"),
    "broken": ('{"x": [1, 2], "label": 0}\n{"x": [1, 2\n', "line 2 is not JSON: "),
    "nested too deeply": ('{"x": ' + "[" * 200_000 + "\n", "line 1 is not JSON: "),
    "a list": ("[1, 2, 0]\n", "line 1 holds no object"),
    "key missing": ('{"x": [1, 2], "label": 0}\n\n{"x": [1, 2], "labl": 0}\n',
                    "line 3 column 'label' is missing: every line needs it. Did you mean 'labl'"),
    "null": ('{"x": null, "label": 0}\n', "line 1 column 'x' is empty"),
    "NaN": ('{"x": [1, NaN], "label": 0}\n', "line 1 column 'x' holds a list that is not one of finite numbers"),
    "infinite": ('{"a": 1, "b": Infinity, "label": 0}\n', "line 1 column 'b' holds inf, which is no finite number"),
    "true": ('{"a": 1, "b": true, "label": 0}\n', "line 1 column 'b' holds True"),
    "true in a list": ('{"x": [true, false], "label": 0}\n', "line 1 column 'x' holds a list that is not one of"),
    "text in a list": ('{"x": [1, "2"], "label": 0}\n', "line 1 column 'x' holds a list that is not one of finite"),
    "uneven": ('{"x": [[1], [2, 3]], "label": 0}\n', "line 1 column 'x' holds a list that is not one of finite"),
    "too long": ('{"x": [1, 2], "label": 0}\n{"x": [1, 2, 3], "label": 0}\n', "line 2 gives 3 numbers ([3]) in 'x'"),
    "an object": ('{"x": {"a": 1}, "label": 0}\n', "line 1 column 'x' holds {'a': 1}"),
    "fraction as label": ('{"x": [1, 2], "label": 0.5}\n', "line 1 column 'label' holds 0.5, which is neither"),
    "NaN as label": ('{"x": [1, 2], "label": NaN}\n', "line 1 column 'label' holds nan, which is neither"),
    "true as label": ('{"x": [1, 2], "label": true}\n', "line 1 column 'label' holds True, which is neither"),
    "list as label": ('{"x": [1, 2], "label": [0]}\n', "line 1 column 'label' holds [0], which is neither"),
}  # fmt: skip


@pytest.mark.parametrize("case", JSON)
def test_bad_json(tmp_path, case):
    text, words = JSON[case]
    with pytest.raises(DataError) as error:
        table(tmp_path, text, "t.jsonl").check(CLASSES, {})
    assert "t.jsonl'" in str(error.value)
    assert words in str(error.value)


TEXT = "a,b,label\n1,2,0\n"
OPTIONS = {
    "unknown input": ({"input_columns": {"y": ["a"]}}, "there is no input 'y'"),
    "unknown column": ({"input_columns": {"x": ["a", "bb"]}}, "has no column 'bb'. Did you mean 'b'"),
    "unknown label": ({"label_columns": ["labl"]}, "has no column 'labl'. Did you mean 'label'"),
    "both": ({"input_columns": {"x": ["a", "label"]}}, "the column 'label' of"),
    "two labels": (
        {"label_columns": ["a", "b"], "input_columns": {"x": ["label"]}}, "a class is one label column, not 2"),
}  # fmt: skip


@pytest.mark.parametrize("case", OPTIONS)
def test_options_that_do_not_fit(tmp_path, case):
    options, words = OPTIONS[case]
    with pytest.raises(DataError) as error:
        table(tmp_path, TEXT, **options)
    assert words in str(error.value)


def test_labels_that_are_no_given_class(tmp_path):
    with pytest.raises(DataError, match=r"line 3 column 'label' has the label 'qq', which is no class\. Did"):
        table(tmp_path, "a,b,label\n1,2,q\n1,2,qq\n", classes=["p", "q", "rr"])
    with pytest.raises(DataError, match=r"line 2 column 'label' has the label '1', which is no class"):
        table(tmp_path, "a,b,label\n1,2,1\n", classes=["3", "5", "7"])


def test_columns_of_several_inputs_must_be_named(tmp_path):
    two = manifest_of({"x": ("float32", 2), "z": ("int64",)})
    with pytest.raises(
        DataError, match=r"which column of '.*' the input 'x' reads is not known \(it has 'a', 'b', 'z', "
    ):
        table(tmp_path, "a,b,z,label\n1,2,3,0\n", manifest=two)
    with pytest.raises(DataError, match="columns were given without the name of their input"):
        table(tmp_path, "a,b,z,label\n1,2,3,0\n", manifest=two, input_columns={"": ["a"]})


def test_whole_numbers_for_whole_inputs(tmp_path):
    whole = manifest_of({"x": ("int64", 2)})
    assert everything(table(tmp_path, "a,b,label\n1,2.0,0\n", manifest=whole), whole)["x"].tolist() == [[1, 2]]
    with pytest.raises(DataError, match=r"line 2 column 'b' holds '2\.5', and 'x' takes whole numbers"):
        table(tmp_path, "a,b,label\n1,2.5,0\n", manifest=whole)
    for cell in ([1, 2.5], [1, 2**63], [2**63, 2**63]):
        with pytest.raises(DataError, match="line 1 column 'x' holds numbers that are not whole or beyond int64"):
            table(tmp_path, lines({"x": cell, "label": 0}), "t.jsonl", whole)


def test_rows_of_unequal_length(tmp_path):
    series = manifest_of({"x": ("float32", "time")}, dimensions={"time": 3})
    with pytest.raises(DataError, match=r"line 2 has the shape \[2\], not \[3\] as before"):
        table(tmp_path, lines({"x": [1, 2, 3], "label": 0}, {"x": [1, 2], "label": 0}), "t.jsonl", series)


def test_files_that_are_no_tables(tmp_path):
    with pytest.raises(DataError, match=r"'data.xlsx' is no table: the suffix must be .csv, .tsv, .jsonl, .ndjson"):
        rows.Rows(tmp_path.joinpath("data.xlsx").relative_to(tmp_path))
    with pytest.raises(DataError, match=r"there is no data file '.*no.csv'"):
        open_table(tmp_path / "no.csv", CLASSES, DataOptions())


def test_files_that_cannot_be_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "open", lambda *args, **options: (_ for _ in ()).throw(PermissionError(13, "Denied")))
    with pytest.raises(DataError, match=r"t.csv' cannot be read: Denied"):
        table(tmp_path, "a,b,label\n1,2,0\n")


def test_cells_and_lines_are_bounded(tmp_path, monkeypatch):
    assert len(table(tmp_path, f"a,b,c,label\n1,2,{'w' * 200_000},0\n", input_columns={"x": ["a", "b"]})) == 1
    monkeypatch.setattr(rows, "LARGEST_LINE", 1000)
    with pytest.raises(DataError, match=r"line 2 cannot be read: field larger than field limit \(1000\)"):
        table(tmp_path, f"a,b,label\n1,{'2' * 2000},0\n")
    with pytest.raises(DataError, match="line 1 has more than 1,000 characters"):
        table(tmp_path, lines({"x": [1] * 2000, "label": 0}), "t.jsonl")


def test_the_fingerprint_is_of_the_bytes(tmp_path):
    first = table(tmp_path, "a,b,label\n1,2,0\n").fingerprint()
    assert table(tmp_path, "a,b,label\n1,2,0\n").fingerprint() == first
    assert table(tmp_path, "a,b,label\n1,2,1\n").fingerprint() != first


@pytest.fixture
def pictures(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed here")
    (tmp_path / "shots").mkdir()
    for i in range(3):
        x = np.random.default_rng(i).integers(0, 256, (20 + i, 33, 3), dtype=np.uint8)
        image.fromarray(x).save(tmp_path / "shots" / f"{i}.png")
    return tmp_path


def test_paths_of_pictures(pictures):
    both = manifest_of({"image": ("float32", 3, 24, 32), "age": ("float32",)})
    text = "file,age,label\nshots/2.png,7,1\n shots/0.png ,8,0\n"
    data = table(pictures, text, manifest=both, input_columns={"image": ["file"]}, preprocess={"mean": 0.5})
    batch = everything(data, both)
    expected = prepare([pictures / "shots" / "2.png", pictures / "shots" / "0.png"], picture_manifest(), {"mean": 0.5})[
        "image"
    ]
    np.testing.assert_array_equal(batch["image"], expected)
    assert (batch["age"].tolist(), batch["labels"].tolist()) == ([7, 8], [1, 0])
    before = data.fingerprint()
    (pictures / "shots" / "0.png").write_bytes((pictures / "shots" / "1.png").read_bytes())
    assert data.fingerprint() != before


def test_a_row_of_a_picture_is_augmented_like_any_other(pictures):
    text = "file,label\n" + "".join(f"shots/{i}.png,{i}\n" for i in range(3))
    data = table(pictures, text, manifest=picture_manifest(), augment=["crop"])
    whole = data.read(np.arange(3), sizes={}, epoch=4)["image"]
    np.testing.assert_array_equal(data.read(np.array([1]), sizes={}, epoch=4)["image"][0], whole[1])
    assert (data.read(np.arange(3), sizes={}, epoch=None)["image"] != whole).any()


PATHS = {
    "missing": ("shots/9.png", "line 2 column 'file': there is no picture '.*shots/9.png'. Paths are relative"),
    "outside": ("../outside.png", "line 2 column 'file': '.*outside.png' leads out of the data folder"),
    "absolute": ("/etc/hostname", "line 2 column 'file': '/etc/hostname' leads out of the data folder"),
    "empty": (" ", "line 2 column 'file' is empty"),
    "NUL": ("a\0b.png", "line 2 column 'file' holds .*, which is no path of a picture"),
    "no picture": ("t.csv", "the picture '.*t.csv' cannot be read"),
}


@pytest.mark.parametrize("case", PATHS)
def test_paths_that_are_not_read(pictures, case):
    cell, words = PATHS[case]
    with pytest.raises(DataError, match=words):
        table(pictures, f"file,label\n{cell},0\n", manifest=picture_manifest()).check(picture_manifest(), {})


def test_bad_numbers_beside_pictures_are_found_before_the_first_step(pictures):
    both = manifest_of({"image": ("float32", 3, 24, 32), "age": ("float32",)})
    text = "image,age,label\nshots/2.png,7,1\nshots/0.png,1e99,0\n"
    with pytest.raises(DataError, match=r"'age' has the value 1e\+99"):
        table(pictures, text, manifest=both).check(both, {})


def test_options_of_pictures_are_checked(pictures):
    with pytest.raises(ConfigError, match="unknown preprocess key"):
        table(pictures, "file,label\nshots/2.png,0\n", manifest=picture_manifest(), preprocess={"men": 1})
