from __future__ import annotations

import json
import sys
import threading

import numpy as np
import pytest
from data_manifests import TOKENS, manifest_of, token_manifest

from onnxft.data import text as texts
from onnxft.data.options import DataOptions
from onnxft.data.tables import open_table
from onnxft.errors import DataError
from onnxft.manifest import Loss

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed here")

WORDS = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", *"abcdefghij", "##x"]
TAGGED = token_manifest(label=("int64", ("sequence",)), loss=Loss("cross_entropy", "y", 3, 2, -100))
CAUSAL = token_manifest(
    inputs=TOKENS[:2], label=("int64", ("sequence",)), loss=Loss("cross_entropy", "y", len(WORDS), 2, -100, 1)
)


def make_tokenizer(special=True, words=WORDS):
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if special:
        made.add_special_tokens([w for w in words if w.startswith("[")])
        made.post_processor = tokenizers.processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
        )
    return made


@pytest.fixture
def artifact(tmp_path):
    (tmp_path / "model").mkdir()
    make_tokenizer().save(str(tmp_path / "model" / "tokenizer.json"))
    return tmp_path / "model"


def table(artifact, *values, manifest=None, name="t.jsonl", **options):
    path = artifact.parent / name
    path.write_text("".join(json.dumps(v) + "\n" for v in values) if name.endswith("l") else values[0])
    return open_table(path, manifest or token_manifest(), DataOptions(**{"artifact": artifact, **options}))


def read(data, size, index=None, manifest=None):
    data.check(manifest or token_manifest(), {"sequence": size})
    return data.read(np.arange(len(data)) if index is None else np.array(index), sizes={"sequence": size}, epoch=None)


ROWS = ({"text": "a b cx", "label": 1}, {"text": "d", "label": 2}, {"text": "e f g h i j a b", "label": 0})


def test_texts_are_padded_and_cut_to_the_size(artifact):
    data = table(artifact, *ROWS)
    assert data.lengths.tolist() == [6, 3, 10]
    assert data.labels.tolist() == [1, 2, 0]
    batch = read(data, 7)
    assert list(batch) == ["labels", *TOKENS]
    assert batch["input_ids"].tolist() == [
        [1, 4, 5, 6, 14, 2, 3], [1, 7, 2, 3, 3, 3, 3], [1, 8, 9, 10, 11, 12, 2],
    ]  # fmt: skip
    assert batch["attention_mask"].tolist() == [[1] * 6 + [0], [1] * 3 + [0] * 4, [1] * 7]
    assert (batch["token_type_ids"] == 0).all()
    assert batch["input_ids"].dtype == np.int64


def test_pairs_have_types(artifact):
    data = table(artifact, "first,second,label\na b,c,1\n\"d e f\",g h,0\n", name="t.csv",
                 input_columns={"input_ids": ["first", "second"]})  # fmt: skip
    batch = read(data, 7)
    assert batch["input_ids"].tolist() == [[1, 4, 5, 2, 6, 2, 3], [1, 7, 8, 2, 10, 11, 2]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 1, 1, 1]]


def test_equal_to_transformers(artifact):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed here")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=make_tokenizer(), pad_token="[PAD]")
    rng = np.random.default_rng(0)
    pairs = [tuple(" ".join(rng.choice(list("abcdefghijk"), rng.integers(1, 9))) for _ in range(2)) for _ in range(40)]
    for columns in (["u"], ["u", "v"]):
        data = table(artifact, *({"u": u, "v": v, "label": 0} for u, v in pairs), input_columns={"": columns})
        for size in (6, 11, 24):
            args = [list(column) for column in zip(*pairs, strict=True)][: len(columns)]
            # WordPiece gives no types without them being asked for, as BERT's tokenizer does.
            expected = theirs(*args, padding="max_length", truncation=True, max_length=size, return_token_type_ids=True)
            batch = read(data, size)
            for name in TOKENS:
                assert batch[name].tolist() == expected[name], (name, size, columns)


def test_buckets_bound_the_lengths_and_each_batch_has_its_size(artifact):
    data = table(artifact, *ROWS, buckets=[4, 8])
    assert data.lengths.tolist() == [6, 3, 8]
    assert read(data, 4, [1])["input_ids"].tolist() == [[1, 7, 2, 3]]
    assert read(data, 8, [2, 0])["input_ids"].shape == (2, 8)


def test_texts_of_a_fixed_length_have_no_lengths(artifact):
    fixed = token_manifest(length=5)
    data = table(artifact, *ROWS, manifest=fixed)
    assert data.lengths is None
    data.check(fixed, {})
    assert data.read(np.array([2]), sizes={}, epoch=None)["input_ids"].tolist() == [[1, 8, 9, 10, 2]]


def test_only_the_inputs_of_the_model_are_made(artifact):
    manifest = token_manifest(inputs=["input_ids"])
    data = table(artifact, *ROWS, manifest=manifest)
    assert list(data.read(np.arange(2), sizes={"sequence": 4}, epoch=None)) == ["labels", "input_ids"]


def test_other_inputs_stand_beside_a_text(artifact):
    manifest = manifest_of({"input_ids": ("int64", "sequence"), "age": ("float32",)}, dimensions={"sequence": 12})
    data = table(artifact, {"input_ids": "a b", "age": 7, "label": 1}, manifest=manifest)
    batch = read(data, 5, manifest=manifest)
    assert (batch["input_ids"].tolist(), batch["age"].tolist()) == ([[1, 4, 5, 2, 3]], [7])


def test_the_next_token_is_the_label_where_no_column_is_named(artifact):
    data = table(artifact, *ROWS, manifest=CAUSAL)
    assert data.labels is None
    batch = read(data, 7, manifest=CAUSAL)
    assert batch["labels"].tolist() == [[1, 4, 5, 6, 14, 2, -100], [1, 7, 2] + [-100] * 4, [1, 8, 9, 10, 11, 12, 2]]


def test_labels_of_tokens_are_taken_as_given(artifact):
    rows = {"text": "a bx", "labels": [-100, 0, 1, 2, -100]}, {"text": "a b c d", "labels": [-100, 0, 1, 2, 1, 2]}
    data = table(artifact, *rows, manifest=TAGGED)
    assert data.labels is None
    assert read(data, 6, manifest=TAGGED)["labels"].tolist() == [[-100, 0, 1, 2, -100, -100], [-100, 0, 1, 2, 1, 2]]
    # Cut to four: the closing token stands where another was.
    assert read(data, 4, [1], manifest=TAGGED)["labels"].tolist() == [[-100, 0, 1, -100]]


def test_labels_of_words_go_to_their_first_token(artifact):
    rows = (
        {"text": ["ax", "b", "cx"], "labels": ["verb", "noun", "other"]},
        {"text": ["d", "e", "f", "g"], "labels": ["noun"] * 4},
    )
    data = table(artifact, *rows, manifest=TAGGED)
    assert data.classes == ("noun", "other", "verb")
    batch = read(data, 8, manifest=TAGGED)
    assert batch["input_ids"].tolist()[0] == [1, 4, 14, 5, 6, 14, 2, 3]
    assert batch["labels"].tolist()[0] == [-100, 2, -100, 0, 1, -100, -100, -100]
    assert read(data, 5, [0], manifest=TAGGED)["labels"].tolist() == [[-100, 2, -100, 0, -100]]


LABELS = {
    "another number of tokens": ({"text": "a bx", "labels": [0, 1]}, "line 1 has 5 tokens and 2 labels: give one for"),
    "another number of words": ({"text": ["a", "bx"], "labels": [0, 1, 1]}, "line 1 has 2 words and 3 labels"),
    "no list": ({"text": "a b", "labels": 1}, "line 1 column 'labels' must be a list of class names or numbers"),
    "fractions": ({"text": "a b", "labels": [0.5, 1]}, "line 1 column 'labels' must be a list of class names"),
    "outside": ({"text": ["a"], "labels": [3]}, "line 1 column 'labels' has the label 3; classes are 0 to 2"),
    "-1": ({"text": ["a"], "labels": [-1]}, "line 1 column 'labels' has the label -1; classes are 0 to 2, and -100"),
    "too few names": ({"text": ["a"], "labels": ["noun"]}, "has 1 classes ('noun'), the model 3"),
    "empty": ({"text": ["a"], "labels": []}, "line 1 column 'labels' is empty"),
}


@pytest.mark.parametrize("case", LABELS)
def test_bad_labels_of_tokens(artifact, case):
    row, words = LABELS[case]
    with pytest.raises(DataError) as error:
        table(artifact, row, manifest=TAGGED)
    assert words in str(error.value)


def test_padding_needs_a_label_that_is_ignored(artifact):
    strict = token_manifest(label=("int64", ("sequence",)), loss=Loss("cross_entropy", "y", 3, 2))
    with pytest.raises(DataError, match="the loss of 'model' ignores no label, which padding of texts needs"):
        table(artifact, {"text": ["a"], "labels": [0]}, manifest=strict)


TEXTS = {
    "empty": ({"text": "  ", "label": 0}, {}, "line 1 column 'text' is empty"),
    "a number": ({"text": 7, "label": 0}, {}, "line 1 column 'text' holds '7', which is no text"),
    "numbers": ({"text": [7, 8], "label": 0}, {}, "line 1 column 'text' holds '[7, 8]', which is no text"),
    "no column": ({"body": "a", "title": "b", "label": 0}, {},
                  "the input 'input_ids' reads is not known (it has 'body', 'title', 'label'): name it with "),
    "three": ({"a": "a", "b": "b", "c": "c", "label": 0}, {"input_columns": {"": ["a", "b", "c"]}},
              "a text is one column, or two for a pair, not 3"),
}  # fmt: skip


@pytest.mark.parametrize("case", TEXTS)
def test_bad_texts(artifact, case):
    row, options, words = TEXTS[case]
    with pytest.raises(DataError) as error:
        table(artifact, row, **options)
    assert words in str(error.value)


def test_texts_and_words_are_not_mixed(artifact):
    with pytest.raises(DataError, match="line 2 column 'text': texts and lists of words are mixed"):
        table(artifact, {"text": "a", "label": 0}, {"text": ["a"], "label": 0})


def test_texts_without_tokens_are_named(artifact):
    plain = make_tokenizer(special=False)
    plain.normalizer = tokenizers.normalizers.Replace("?", "")
    plain.save(str(artifact / "tokenizer.json"))
    with pytest.raises(DataError, match=r"line 2 holds a text without tokens: '\?\?'"):
        table(artifact, {"text": "a", "label": 0}, {"text": "??", "label": 0})


def damaged(path):
    path.write_text('{"version": "1.0"}')


def huge(path):
    path.write_bytes(b"{}" + b" " * (1 << 10))


TOKENIZERS = {
    "missing": (
        lambda path: path.unlink(),
        "the artifact 'model' has no tokenizer.json of its own: name one with --tok",
    ),
    "damaged": (damaged, r"tokenizer.json' cannot be read as a tokenizer.json: "),
    "too large": (huge, r"tokenizer.json' has 1,026 bytes, which is no tokenizer"),
}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_bad_tokenizers(artifact, case, monkeypatch):
    change, words = TOKENIZERS[case]
    change(artifact / "tokenizer.json")
    if case == "too large":
        monkeypatch.setattr(texts, "_LARGEST_FILE", 1 << 10)
    with pytest.raises(DataError, match=words):
        table(artifact, *ROWS)


def test_a_tokenizer_may_be_named(artifact):
    other = artifact.parent / "other.json"
    make_tokenizer(words=[*WORDS[:4], *reversed(WORDS[4:])]).save(str(other))
    named = table(artifact, *ROWS, tokenizer=str(other))
    assert read(named, 3, [1])["input_ids"].tolist() == [[1, 11, 2]]
    assert named.fingerprint() != table(artifact, *ROWS).fingerprint()
    with pytest.raises(DataError, match=r"there is no tokenizer '.*no.json': name a tokenizer.json with --tokenizer"):
        table(artifact, *ROWS, tokenizer=str(artifact / "no.json"))


def test_a_size_without_room_for_the_special_tokens(artifact):
    data = table(artifact, *ROWS)
    for size in (1, 2):
        with pytest.raises(DataError, match=f"texts cannot be cut to {size} tokens: '.*' adds 2 to each"):
            data.read(np.arange(2), sizes={"sequence": size}, epoch=None)
    assert read(data, 3)["input_ids"].tolist() == [[1, 4, 2], [1, 7, 2], [1, 8, 2]]


PADDING = {
    # what says it -> the padding id
    "the tokenizer itself": ({"padded": True}, 9),
    "its configuration": ({"tokenizer_config.json": {"pad_token": "d"}}, 7),
    "its special tokens": ({"special_tokens_map.json": {"pad_token": {"content": "e"}}}, 8),
    "the usual name": ({}, 3),
    "a broken file is passed over": ({"tokenizer_config.json": ["pad_token"]}, 3),
}


@pytest.mark.parametrize("case", PADDING)
def test_the_padding_token(artifact, case):
    files, expected = PADDING[case]
    made = make_tokenizer()
    if files.pop("padded", None):
        made.enable_padding(pad_id=9, pad_token="f", length=50)
        made.enable_truncation(2)  # neither length is taken over
    made.save(str(artifact / "tokenizer.json"))
    for name, content in files.items():
        (artifact / name).write_text(json.dumps(content))
    assert read(table(artifact, *ROWS), 4, [1])["input_ids"].tolist() == [[1, 7, 2, expected]]


def test_without_a_padding_token_the_mask_must_tell(artifact):
    make_tokenizer(words=[w for w in WORDS if w != "[PAD]"]).save(str(artifact / "tokenizer.json"))
    assert read(table(artifact, *ROWS), 4, [1])["input_ids"].tolist() == [[1, 6, 2, 0]]
    with pytest.raises(DataError, match="names no padding token, which texts of unequal length need"):
        table(artifact, *ROWS, manifest=token_manifest(inputs=["input_ids"]))


def test_several_threads_cut_to_several_sizes(artifact):
    data = table(artifact, *ROWS)
    expected = {size: read(data, size) for size in (4, 5, 6, 7)}
    found = {}

    def work(size):
        for _ in range(50):
            batch = data.read(np.arange(3), sizes={"sequence": size}, epoch=None)
            found[size] = found.get(size, True) and all((batch[n] == expected[size][n]).all() for n in batch)

    threads = [threading.Thread(target=work, args=(size,)) for size in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(expected, True)


def test_tokenizers_is_asked_for_by_its_extra(artifact, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DataError, match=r"'tokenizers' is not installed: pip install 'onnxft\[text\]'"):
        table(artifact, *ROWS)
