"""The four corpora as lists of documents, split into a training and a held-out part."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import re
import sysconfig
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HELD_OUT_PER_THOUSAND = 50
MAX_DOCUMENT_CHARS = 3000
_MIN_DOCUMENT_CHARS = 40
_SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "pydoc_data", "__pycache__"}
_CALCULATOR_MARK = re.compile(r"<<[^>]*>>")
_FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
_DOCUMENTED = (*_FUNCTION, ast.ClassDef, ast.Module)


@dataclass(frozen=True)
class Corpus:
    """Documents of one domain; no document is in both parts."""

    domain: str
    train: tuple[str, ...]
    held_out: tuple[str, ...]


def load_corpora(data: Path, stdlib: Path | None = None) -> dict[str, Corpus]:
    """Build the corpora of the four domains.

    ``data`` holds ``gsm8k_train.jsonl`` and ``tinyshakespeare.txt``; ``stdlib`` is the folder of a Python
    standard library and defaults to the running one's. Raises ``FileNotFoundError`` for a missing file.
    """
    library = stdlib or Path(sysconfig.get_paths()["stdlib"])
    trees = list(_parsed_modules(library))
    documents = {
        "code": _code_documents(trees),
        "math": _math_documents(data / "gsm8k_train.jsonl"),
        "drama": _drama_documents(data / "tinyshakespeare.txt"),
        "docs": _docs_documents(trees, library),
    }
    return {domain: split(domain, texts) for domain, texts in documents.items()}


def split(domain: str, documents: Iterator[str]) -> Corpus:
    """Drop repeated documents and hold 5 % out by a hash of the text, so that a rerun splits alike."""
    train: list[str] = []
    held_out: list[str] = []
    seen: set[str] = set()
    for document in documents:
        key = " ".join(document.split())
        if key in seen:
            continue
        seen.add(key)
        number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
        (held_out if number % 1000 < HELD_OUT_PER_THOUSAND else train).append(document)
    return Corpus(domain, tuple(train), tuple(held_out))


def _parsed_modules(library: Path) -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(library.rglob("*.py")):
        if _SKIPPED_FOLDERS.intersection(path.relative_to(library).parts):
            continue
        try:
            source = path.read_text(encoding="utf-8")
            yield source, ast.parse(source)
        except (SyntaxError, UnicodeDecodeError):
            continue  # lib2to3 and friends ship files that are broken on purpose


def _code_documents(modules: list[tuple[str, ast.Module]]) -> Iterator[str]:
    """Whole functions and methods without their docstrings, which belong to the ``docs`` corpus."""
    for source, tree in modules:
        lines = source.splitlines()
        for function in _outer_functions(tree):
            text = _function_text(function, lines)
            if _MIN_DOCUMENT_CHARS <= len(text) <= MAX_DOCUMENT_CHARS:
                yield text


def _outer_functions(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _FUNCTION):
            yield child
        else:
            yield from _outer_functions(child)


def _function_text(function: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> str:
    """Source of a function from ``def`` on, dedented; empty if nothing but a docstring is in it."""
    start, end = function.lineno, function.end_lineno or function.lineno
    dropped: set[int] = set()
    if ast.get_docstring(function, clean=False) is not None:
        if len(function.body) == 1:
            return ""
        literal = function.body[0]
        dropped = set(range(literal.lineno, (literal.end_lineno or literal.lineno) + 1))
    kept = [lines[number - 1].rstrip() for number in range(start, end + 1) if number not in dropped]
    return textwrap.dedent("\n".join(kept).expandtabs(4)).strip() + "\n"


def _docs_documents(modules: list[tuple[str, ast.Module]], library: Path) -> Iterator[str]:
    """Docstrings in their quotes, and the sections of the language reference in ``pydoc_data``."""
    for _, tree in modules:
        for node in ast.walk(tree):
            text = ast.get_docstring(node) if isinstance(node, _DOCUMENTED) else None
            if text and len(text) >= _MIN_DOCUMENT_CHARS:
                for part in _paragraph_groups(text, MAX_DOCUMENT_CHARS // 2):
                    yield f'"""{part}\n"""\n' if "\n" in part else f'"""{part}"""\n'
    for topic in _pydoc_topics(library / "pydoc_data" / "topics.py"):
        yield from (part + "\n" for part in _paragraph_groups(inspect.cleandoc(topic), MAX_DOCUMENT_CHARS // 2))


def _pydoc_topics(path: Path) -> list[str]:
    """Texts of the ``topics`` dictionary, read without running the module; none if it is not there."""
    if not path.exists():
        return []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
            return [str(ast.literal_eval(value)) for value in node.value.values]
    return []


def _math_documents(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            answer = _CALCULATOR_MARK.sub("", record["answer"]).strip()
            yield f"Question: {record['question'].strip()}\nAnswer: {answer}\n"


def _drama_documents(path: Path) -> Iterator[str]:
    """Runs of speeches of 300 to 1,100 characters, so that documents end at varied lengths."""
    speeches = [speech.strip() for speech in path.read_text(encoding="utf-8").split("\n\n")]
    current: list[str] = []
    size = 0
    for speech in filter(None, speeches):
        current.append(speech)
        size += len(speech) + 2
        limit = 300 + hashlib.sha256(current[0].encode()).digest()[0] * 800 // 255
        if size >= limit:
            yield "\n\n".join(current) + "\n"
            current, size = [], 0
    if current:
        yield "\n\n".join(current) + "\n"


def _paragraph_groups(text: str, limit_chars: int) -> Iterator[str]:
    """Consecutive paragraphs joined up to ``limit_chars``; single longer paragraphs stay whole."""
    current = ""
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        if current and len(current) + len(paragraph) > limit_chars:
            yield current
            current = paragraph
        else:
            current = f"{current}\n\n{paragraph}" if current else paragraph
    if current:
        yield current
