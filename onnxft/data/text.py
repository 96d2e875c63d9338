"""Texts as tokens, by a `tokenizer.json` and the package `tokenizers`.

Rows are padded at the end, with the id of the padding token, 0 in the attention mask, and the ignored label. Longer
ones are cut by the tokenizer, so that closing tokens stay.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from onnxft.arrays import Array
from onnxft.data.dataset import Batch
from onnxft.errors import DataError
from onnxft.manifest import LABELS

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""The inputs of a model that are made from a text."""
FILE = "tokenizer.json"
_LARGEST_FILE = 64 << 20
_BLOCK = 1024
_PADDING = ("[PAD]", "<pad>", "<|pad|>", "<PAD>")
"""Usual names of the padding token, where no file beside the tokenizer says it."""

Text = str | tuple[str, str] | list[str]
"""A text, a pair of texts, or a text that is split into words already."""


class Tokenizer:
    """A tokenizer.json."""

    def __init__(self, path: Path) -> None:
        """Read the file; DataError if it is missing, damaged or larger than 64 MiB, or the package is missing."""
        try:
            import tokenizers
        except ModuleNotFoundError as err:
            raise DataError(
                f"texts are read with tokenizers, and '{err.name}' is not installed: pip install 'onnxft[text]'."
            ) from err
        if not path.is_file():
            raise DataError(f"there is no tokenizer '{path}': name a {FILE} with --tokenizer.")
        if path.stat().st_size > _LARGEST_FILE:
            raise DataError(f"'{path}' has {path.stat().st_size:,} bytes, which is no tokenizer.")
        self.path = path
        self.content = path.read_bytes()
        try:
            self._whole = tokenizers.Tokenizer.from_buffer(self.content)
        except Exception as err:  # the package raises plain exceptions
            raise DataError(f"'{path}' cannot be read as a {FILE}: {str(err).splitlines()[0]}.") from err
        padding = self._whole.padding
        self._whole.no_padding()
        self._whole.no_truncation()
        self.padding: int | None = padding["pad_id"] if padding else self._padding_token()
        self._cut = lru_cache(16)(self._make_cut)

    def encode(self, texts: Sequence[Text], limit: int | None = None) -> list[Any]:
        """The encodings of texts, at most `limit` tokens long."""
        pair = isinstance(texts[0], tuple)
        if limit is not None and limit <= (special := self._whole.num_special_tokens_to_add(pair)) + pair:
            raise DataError(
                f"texts cannot be cut to {limit} tokens: '{self.path}' adds {special} to each. Use a greater size "
                "(--dimension, --buckets)."
            )
        tokenizer = self._whole if limit is None else self._cut(limit)
        found: list[Any] = tokenizer.encode_batch(list(texts), is_pretokenized=isinstance(texts[0], list))
        return found

    def _make_cut(self, limit: int) -> Any:
        """A copy, for a limit belongs to a tokenizer and threads share this one."""
        cut = type(self._whole).from_str(self._whole.to_str())
        cut.enable_truncation(limit)
        return cut

    def _padding_token(self) -> int | None:
        named = []
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            try:
                token = json.loads((self.path.parent / name).read_bytes()).get("pad_token")
            except (OSError, ValueError, AttributeError):  # they are optional, and so is their form
                continue
            named.append(token.get("content") if isinstance(token, dict) else token)
        ids = (self._whole.token_to_id(t) for t in (*named, *_PADDING) if isinstance(t, str))
        return next((i for i in ids if i is not None), None)


class Tokens:
    """Texts as rows of the inputs `input_ids`, `attention_mask`, `token_type_ids`, and of labels along the tokens."""

    def __init__(
        self,
        texts: Sequence[Text],
        tokenizer: Tokenizer,
        inputs: Sequence[str],
        where: Sequence[str],
        *,
        tags: Sequence[Sequence[int]] | None = None,
        next_token: bool = False,
        ignored: int | None = None,
    ) -> None:
        """Tokenize the texts.

        Args:
            texts: of one kind.
            tokenizer: of the model.
            inputs: those of INPUTS that the model has.
            where: the place of each text, for messages.
            tags: labels of each row: one for a word where texts are words, else one for a token.
            next_token: whether the labels are the tokens themselves.
            ignored: the label that does not count.

        Raises:
            DataError: a text has no token, or not as many as labels.
        """
        self._texts, self._tokenizer, self._inputs, self._where = texts, tokenizer, inputs, where
        self._tags, self._next_token, self._ignored = tags, next_token, ignored
        if tokenizer.padding is None and "attention_mask" not in inputs:
            raise DataError(
                f"'{tokenizer.path}' names no padding token, which texts of unequal length need: add \"pad_token\" to "
                "a tokenizer_config.json beside it."
            )
        self._padding = tokenizer.padding or 0  # behind the attention mask any id will do
        ids, types, lengths = [], [], []
        labels: list[Array] = []
        for start in range(0, len(texts), _BLOCK):
            for i, encoding in enumerate(tokenizer.encode(texts[start : start + _BLOCK]), start):
                if not encoding.ids:
                    raise DataError(f"{where[i]} holds a text without tokens: {texts[i]!r}.")
                ids.append(np.array(encoding.ids, np.int32))
                types.append(np.array(encoding.type_ids, np.uint8))
                if (row_labels := self._labels(i, encoding, len(encoding.ids))) is not None:
                    labels.append(row_labels)
                lengths.append(len(encoding.ids))
        self.lengths: Array = np.array(lengths, np.int64)
        self._ends = np.cumsum(self.lengths)
        self._cuts: dict[tuple[int, int], tuple[Array, Array, Array | None]] = {}
        self._ids, self._types = np.concatenate(ids), np.concatenate(types)
        self._row_labels = np.concatenate(labels) if labels else None

    def read(self, index: Array, size: int) -> Batch:
        """{input: (n, size)}, with the labels along the tokens, if there are any."""
        ids = np.full((len(index), size), self._padding, np.int64)
        mask, types = np.zeros_like(ids), np.zeros_like(ids)
        labels = np.full_like(ids, 0 if self._ignored is None else self._ignored)
        for k, i in enumerate(index.tolist()):
            row_ids, row_types, row_labels = self._row(i, size)
            n = len(row_ids)
            ids[k, :n], mask[k, :n], types[k, :n] = row_ids, 1, row_types
            if row_labels is not None:
                labels[k, :n] = row_labels
        made = dict(zip(INPUTS, (ids, mask, types), strict=True))
        found = {name: made[name] for name in self._inputs}
        return found if self._row_labels is None else {**found, LABELS: labels}

    def _row(self, i: int, size: int) -> tuple[Array, Array, Array | None]:
        if self.lengths[i] > size:
            if (i, size) not in self._cuts:
                cut = self._tokenizer.encode([self._texts[i]], size)[0]
                labels = self._labels(i, cut, int(self.lengths[i]))
                self._cuts[i, size] = np.array(cut.ids, np.int32), np.array(cut.type_ids, np.uint8), labels
            return self._cuts[i, size]
        part = slice(int(self._ends[i] - self.lengths[i]), int(self._ends[i]))
        return self._ids[part], self._types[part], None if self._row_labels is None else self._row_labels[part]

    def _labels(self, i: int, encoding: Any, length: int) -> Array | None:
        """Labels of a row's tokens; `length` is that of the row before it was cut."""
        if self._next_token:
            return np.array(encoding.ids)
        if self._tags is None:
            return None
        tags = self._tags[i]
        if not isinstance(self._texts[i], list):
            if len(tags) != length:
                raise DataError(
                    f"{self._where[i]} has {length} tokens and {len(tags)} labels: give one for each token, or the "
                    "text as a list of words with one for each word."
                )
            labels = np.array(tags[: len(encoding.ids)])
            if len(encoding.ids) < length:  # closing tokens stand where others were
                labels[np.array(encoding.special_tokens_mask, bool)] = self._ignored
            return labels
        if len(tags) != len(self._texts[i]):
            raise DataError(f"{self._where[i]} has {len(self._texts[i])} words and {len(tags)} labels.")
        words = encoding.word_ids
        # The first token of a word has its label, the others do not count.
        begins = [w is not None and (t == 0 or words[t - 1] != w) for t, w in enumerate(words)]
        return np.array([tags[w] if b else self._ignored for w, b in zip(words, begins, strict=True)])
