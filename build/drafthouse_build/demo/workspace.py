"""The output folder of a training run: tokenizer, token ids, models, checkpoints and results."""

from __future__ import annotations

import dataclasses
import json
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console
from tokenizers import Tokenizer

from drafthouse_build.demo.config import Preset
from drafthouse_build.demo.corpus import Corpus, load_corpora
from drafthouse_build.demo.loop import PhaseResult
from drafthouse_build.demo.model import Llama, load_pretrained, save_pretrained
from drafthouse_build.demo.tokenizer import TokenIds, encode_documents, save_tokenizer, train_tokenizer


class Workspace:
    """Owner of every file of one training run.

    ``out`` gets one Hugging Face folder per model, ``state/`` with checkpoints and ``results/`` with one
    JSON file per finished phase. Corpora and tokenizer are built on first use.
    """

    def __init__(self, out: Path, preset: Preset, data: Path, stdlib: Path | None, console: Console) -> None:
        self.out = out
        self.preset = preset
        self._data = data
        self._stdlib = stdlib
        self.console = console

    @cached_property
    def corpora(self) -> dict[str, Corpus]:
        """The four corpora."""
        with self.console.status("reading the corpora"):
            return load_corpora(self._data, self._stdlib)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer trained on the training part of all corpora; kept on disk."""
        path = self.out / "tokenizer.json"
        if not path.exists():
            documents = (text for corpus in self.corpora.values() for text in corpus.train)
            with self.console.status("training the tokenizer"):
                tokenizer = train_tokenizer(documents, self.preset.target_shape.vocab_size)
            self.out.mkdir(parents=True, exist_ok=True)
            tokenizer.save(str(path))
        return Tokenizer.from_file(str(path))

    @cached_property
    def train(self) -> dict[str, list[TokenIds]]:
        """Token ids of the training documents by domain."""
        return {name: encode_documents(self.tokenizer, corpus.train) for name, corpus in self.corpora.items()}

    @cached_property
    def held_out(self) -> dict[str, list[TokenIds]]:
        """Token ids of the held-out documents by domain."""
        return {name: encode_documents(self.tokenizer, corpus.held_out) for name, corpus in self.corpora.items()}

    def state_path(self, phase: str) -> Path:
        """Where the checkpoint of a phase lies."""
        return self.out / "state" / f"{phase}.pt"

    def save_model(self, name: str, model: Llama) -> None:
        """Write a model folder with its tokenizer."""
        folder = self.out / name
        save_pretrained(model, folder)
        save_tokenizer(self.tokenizer, folder, self.preset.target_shape.max_positions)

    def load_model(self, name: str) -> Llama:
        """Read a model folder written by :meth:`save_model`."""
        return load_pretrained(self.out / name)

    def save_result(self, phase: str, result: PhaseResult) -> None:
        """Write the figures of a finished phase; a phase with a result is not run again."""
        self.write_json(self._result_path(phase), dataclasses.asdict(result))

    def result(self, phase: str) -> dict[str, Any] | None:
        """Figures of a phase, or ``None`` if it has not finished."""
        path = self._result_path(phase)
        if not path.exists():
            return None
        figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return figures

    def set_path(self, domain: str, kind: str) -> Path:
        """Where a distillation set lies."""
        return self.out / "sets" / f"{domain}_{kind}.npz"

    def write_json(self, path: Path, content: object) -> None:
        """Write ``content`` to ``path``, creating its folder."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def _result_path(self, phase: str) -> Path:
        return self.out / "results" / f"{phase}.json"
