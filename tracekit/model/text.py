"""Instruction -> token ids: the prompt, and the three tokenizers a policy may come with.

A checkpoint of the release takes the user's LLaMA `tokenizer.json`, or a table of ids where no tokenizer is at hand;
the small policies have a vocabulary of words of their own, stored beside the weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from tracekit.errors import PolicyError

__all__ = [
    "FileTokenizer",
    "IdTable",
    "TextTokenizer",
    "WordTokenizer",
    "load_tokenizer",
    "prompt_of",
]

LLAMA_TAIL = 29871
"""LLaMA-2's id of a lone space, which the release puts after the noisy action."""

WORDS_FILE = "vocabulary.json"
TABLE_FILE = "text_ids.json"
LLAMA_FILE = "tokenizer.json"


def prompt_of(instruction: str) -> str:
    """The text that the policy reads for `instruction`."""
    return f"In: What action should the robot take to {instruction.lower()}?\nOut:"


class TextTokenizer(Protocol):
    """What a policy needs of a tokenizer."""

    @property
    def tail_id(self) -> int:
        """Id of the row after the noisy action."""
        ...

    def encode(self, instruction: str) -> list[int]:
        """Ids of the prompt for `instruction`: BOS first, without the tail. Raises PolicyError if it cannot."""
        ...

    def save(self, directory: Path) -> None:
        """Write what `load_tokenizer` needs into `directory`."""
        ...


@dataclass(frozen=True, slots=True)
class WordTokenizer:
    """Lower-case words and punctuation marks of a fixed list. Ids: 0 unknown, 1 BOS, 2 tail, then `words` in order."""

    words: tuple[str, ...]
    _ids: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(set(self.words)) != len(self.words):
            raise PolicyError("vocabulary: a word is listed twice; list every word once")
        object.__setattr__(self, "_ids", {word: i + 3 for i, word in enumerate(self.words)})

    @property
    def tail_id(self) -> int:
        """Id of the row after the noisy action."""
        return 2

    @property
    def size(self) -> int:
        """Number of ids."""
        return len(self.words) + 3

    def encode(self, instruction: str) -> list[int]:
        """Ids of the prompt for `instruction`: BOS first; a word off the list becomes the unknown id."""
        pieces = re.findall(r"[a-z0-9]+|[^\sa-z0-9]", prompt_of(instruction).lower())
        return [1, *(self._ids.get(piece, 0) for piece in pieces)]

    def unknown(self, instruction: str) -> list[str]:
        """Words of `instruction` that are off the list, in order."""
        pieces = re.findall(r"[a-z0-9]+|[^\sa-z0-9]", instruction.lower())
        return [piece for piece in pieces if piece not in self._ids]

    def save(self, directory: Path) -> None:
        """Write `vocabulary.json`."""
        (directory / WORDS_FILE).write_text(json.dumps({"words": self.words}, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True, slots=True)
class IdTable:
    """Ids by instruction, for checkpoints whose tokenizer is not at hand. `table`: instruction -> ids, BOS first."""

    table: Mapping[str, Sequence[int]]
    tail_id: int = LLAMA_TAIL

    def encode(self, instruction: str) -> list[int]:
        """The ids listed for `instruction`, without a trailing tail id; raises PolicyError if it is not listed."""
        if instruction not in self.table:
            known = ", ".join(repr(key) for key in self.table) or "none"
            raise PolicyError(
                f"no token ids for instruction {instruction!r}; {TABLE_FILE} lists: {known}; put LLaMA's "
                f"{LLAMA_FILE} beside the checkpoint or add the ids"
            )
        ids = [int(i) for i in self.table[instruction]]
        return ids[:-1] if ids and ids[-1] == self.tail_id else ids

    def save(self, directory: Path) -> None:
        """Write `text_ids.json`."""
        data = {"tail_id": self.tail_id, "text_ids": {key: [int(i) for i in ids] for key, ids in self.table.items()}}
        (directory / TABLE_FILE).write_text(json.dumps(data) + "\n", encoding="utf-8")


class FileTokenizer:
    """The user's LLaMA `tokenizer.json`, read by the `tokenizers` package."""

    tail_id = LLAMA_TAIL

    def __init__(self, path: Path) -> None:
        try:
            library = import_module("tokenizers")  # optional: only checkpoints with a tokenizer.json need it
        except ImportError as error:
            remedy = f"install it, or give token ids in {TABLE_FILE}"
            raise PolicyError(f"{path}: needs the package `tokenizers`; {remedy}") from error
        self._text = path.read_text(encoding="utf-8")
        try:
            self._tokenizer: Any = library.Tokenizer.from_str(self._text)
        except Exception as error:  # the package raises nothing narrower
            raise PolicyError(f"{path}: not a tokenizer file ({error}); give LLaMA-2's {LLAMA_FILE}") from error

    def encode(self, instruction: str) -> list[int]:
        """Ids of the prompt for `instruction`: BOS first, without a trailing tail id."""
        ids: list[int] = self._tokenizer.encode(prompt_of(instruction)).ids
        bos = self._tokenizer.token_to_id("<s>")
        if bos is not None and ids[:1] != [bos]:
            ids = [bos, *ids]
        return ids[:-1] if ids[-1:] == [self.tail_id] else ids

    def save(self, directory: Path) -> None:
        """Write `tokenizer.json`."""
        (directory / LLAMA_FILE).write_text(self._text, encoding="utf-8")


def load_tokenizer(directory: Path) -> TextTokenizer:
    """The tokenizer stored in `directory`: words, LLaMA file, or id table, in this order; else an empty id table."""
    if (directory / WORDS_FILE).is_file():
        return WordTokenizer(tuple(_read(directory / WORDS_FILE, "words", list)))
    if (directory / LLAMA_FILE).is_file():
        return FileTokenizer(directory / LLAMA_FILE)
    if (directory / TABLE_FILE).is_file():
        path = directory / TABLE_FILE
        return IdTable(_read(path, "text_ids", dict), _read(path, "tail_id", int))
    return IdTable({})


def _read(path: Path, key: str, kind: type) -> Any:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PolicyError(f"{path}: not JSON ({error}); restore the file from the checkpoint") from error
    if not isinstance(data, dict) or not isinstance(data.get(key), kind):
        raise PolicyError(f"{path}: lacks {key!r} ({kind.__name__}); restore the file from the checkpoint")
    return data[key]
