"""Transforms of documents into windows of tokens: bytes, or byte pairs (`tokenizers`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from framework.config.annotations import ExistingFile
from framework.errors import DataError
from framework.record.files import checksum

from .rows import Rows
from .transforms import Transform, field

TOKENIZER = "tokenizer.json"
END_OF_TEXT = "<|endoftext|>"
SMALLEST_VOCABULARY = 257


@dataclass(frozen=True)
class BytePairs:
    """Tokenise documents with byte-pair encoding (byte level, as GPT-2's), trained on the train split or loaded.

    Args:
        field: the field of documents (bytes or str), which is replaced by arrays of tokens.
        vocabulary: how many tokens; an end-of-text token is number 0.
        tokenizer: a `tokenizer.json` to be used instead of training one.
        sample_bytes: at most so many bytes of a partition are trained on.
    """

    field: str
    vocabulary: int = 8192
    tokenizer: ExistingFile | None = None
    sample_bytes: int = 1_000_000
    over: ClassVar[Literal["train", "all"]] = "train"

    def __post_init__(self) -> None:
        if self.tokenizer is None and self.vocabulary < SMALLEST_VOCABULARY:
            raise ValueError(f"vocabulary must be at least {SMALLEST_VOCABULARY}: 256 bytes and the end of a text")

    def fingerprint(self) -> str:
        return "" if self.tokenizer is None else checksum(Path(self.tokenizer))

    def measure(self, rows: Rows) -> list[str]:
        if self.tokenizer is not None:
            return []
        sample, size = [], 0
        for document in _texts(field(rows, self.field)):
            sample.append(document[: self.sample_bytes - size])
            size += len(sample[-1])
            if size >= self.sample_bytes:
                break
        return sample

    def fit(self, measures: Sequence[list[str]]) -> Transform:
        from tokenizers import ByteLevelBPETokenizer, Tokenizer

        if self.tokenizer is not None:
            try:
                return Encode(self.field, Tokenizer.from_file(str(self.tokenizer)).to_str())
            except Exception as error:  # the package raises plain Exception
                raise DataError(f"`{self.tokenizer}` is not a tokenizer: {error}") from None
        trained = ByteLevelBPETokenizer()
        documents = (document for sample in measures for document in sample)
        trained.train_from_iterator(documents, self.vocabulary, special_tokens=[END_OF_TEXT], show_progress=False)
        return Encode(self.field, trained._tokenizer.to_str())


@dataclass(frozen=True)
class Encode:
    """Turn documents into arrays of token numbers, each closed by the end-of-text token where there is one.

    Args:
        field: the field of documents.
        tokenizer: the content of a `tokenizer.json`.
    """

    field: str
    tokenizer: str

    def files(self) -> dict[str, str]:
        return {TOKENIZER: self.tokenizer}

    def __call__(self, rows: Rows) -> Rows:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self.tokenizer)
        end = tokenizer.token_to_id(END_OF_TEXT)
        documents = _texts(field(rows, self.field))
        tail = [] if end is None else [end]
        out = np.empty(len(documents), dtype=object)
        out[:] = [np.array([*e.ids, *tail], dtype=np.uint32) for e in tokenizer.encode_batch(documents)]
        return {**rows, self.field: out}


def _texts(documents: Iterable[Any]) -> list[str]:
    return [d.decode(errors="replace") if isinstance(d, bytes) else str(d) for d in documents]


@dataclass(frozen=True)
class Windows:
    """Join documents of tokens end to end and cut them into windows.

    Windows overlap by one token, so that every token but a partition's first is predicted once. A last window that is
    not full is dropped.

    Args:
        field: the field of documents: arrays of tokens, as `BytePairs` makes them.
        into: the new field, [windows, length].
        length: tokens in a window: the model's context + 1.
        dtype: of the new field.
    """

    field: str
    into: str
    length: int
    dtype: str = "uint16"

    def __call__(self, rows: Rows) -> Rows:
        documents = field(rows, self.field)
        stream = np.concatenate([*documents, np.empty(0, dtype=np.uint32)])
        if len(stream) and stream.max() > np.iinfo(self.dtype).max:
            raise DataError(f"tokens of `{self.field}` reach {stream.max()}, more than {self.dtype} holds")
        return {self.into: _cut(stream.astype(self.dtype), self.length)}


def _cut(stream: npt.NDArray, length: int) -> npt.NDArray:
    """Return the full windows of a stream, each beginning with the last token of the one before."""
    stride = length - 1
    windows = max(0, (len(stream) - 1) // stride)
    return stream[np.arange(windows)[:, None] * stride + np.arange(length)]


@dataclass(frozen=True)
class ByteWindows:
    """Read documents as bytes, join them end to end, and cut them into windows of tokens.

    A zero byte closes each document. Windows overlap by one token, so that every token but a partition's first
    is predicted once. A last window that is not full is dropped.

    Args:
        field: the field of documents (bytes or str), which is replaced.
        into: the new field, uint8 [windows, length].
        length: tokens in a window: the model's context + 1.
    """

    field: str
    into: str
    length: int

    def __call__(self, rows: Rows) -> Rows:
        documents = [d.encode() if isinstance(d, str) else d for d in field(rows, self.field)]
        stream = np.frombuffer(b"".join(d + b"\0" for d in documents), dtype=np.uint8)
        return {self.into: _cut(stream, self.length)}
