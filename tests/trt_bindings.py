"""NVIDIA's real TensorRT bindings on a machine without TensorRT: typed stubs of them, and what they are made of.

`tensorrt-cu13-bindings` is on the package index, and of the libraries that it links to it needs nine functions to be importable, none of
which is called before something is built or run. So a shim with these names, compiled here, is enough to read every class and signature
out of it. The wheels stay in a cache inside the virtual environment; nothing of NVIDIA's is committed.

    python tests/trt_bindings.py      prepares both versions and prints where the stubs are
"""

from __future__ import annotations

import ast
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SHIM_FUNCTIONS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
SHIM_LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
STUBGEN = "pybind11-stubgen==3.0.0"
STUBGEN_SHA256 = "859b7b7dbd31d00f722f19152216b5506e8a5d3fdf586944de0cade80f972298"
_TAG = f"cp{sys.version_info.major}{sys.version_info.minor}"
_MOST_REPAIRS = 100
_FORMAT = 1  # of what lies in the cache


class UnavailableError(Exception):
    """Why the bindings cannot be prepared on this machine."""


@dataclass(frozen=True)
class Version:
    """A version of the bindings, with the digests of its wheels by Python version."""

    number: str
    sha256: dict[str, str]

    @property
    def major(self) -> int:
        return int(self.number.partition(".")[0])


# The oldest version that imports the graph (opset 24 with TensorScatter), and the newest.
VERSIONS = (
    Version(
        "10.15.1.29",
        {
            "cp311": "54ce62c2489e1022d79113d2af0df516f4fac9b4e511be766b45bcfe2ee2acbb",
            "cp312": "7c17a2d83de68bb13531989d5f2edf4c2a7e710e41e8b5652f0d170d2893b1bc",
        },
    ),
    Version(
        "11.4.0.106",
        {
            "cp311": "d072ac2a095e2be749fefc847adfb25d5ebe70303401df62ede8fe67a59f27fc",
            "cp312": "5fc7a6c412881f7212030893bd5531b1a0ff415c72c7678dfe4ead7a7765b38d",
        },
    ),
)


@dataclass(frozen=True)
class Bindings:
    """One prepared version: `packages` holds `tensorrt_bindings`, `libraries` the shim, `stubs` the package `tensorrt` as .pyi."""

    version: Version
    folder: Path

    @property
    def packages(self) -> Path:
        return self.folder / "packages"

    @property
    def libraries(self) -> Path:
        return self.folder / "libraries"

    @property
    def stubs(self) -> Path:
        return self.folder / "stubs"

    def run(self, code: str, *paths: Path) -> str:
        """Output of `code` in a Python that has the bindings, as `tensorrt` too, and `paths` on its path."""
        prelude = "import sys, tensorrt_bindings; sys.modules['tensorrt'] = tensorrt_bindings\n"
        return _python(["-c", prelude + code], self.libraries, self.packages, *paths)


def prepare(version: Version) -> Bindings:
    """Downloads, compiles and generates what is missing in the cache; raises `UnavailableError` where that is impossible."""
    if sys.platform != "linux" or platform.machine() != "x86_64" or _TAG not in version.sha256:
        raise UnavailableError(f"no wheel of tensorrt-cu13-bindings {version.number} for {sys.platform} {platform.machine()} {_TAG}")
    if shutil.which("gcc") is None:
        raise UnavailableError("no gcc to compile the shim with")
    folder = Path(sys.prefix) / ".tensorrt-bindings" / f"{version.number}-{_TAG}-{_FORMAT}"
    if folder.is_dir():
        return Bindings(version, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        bindings = Bindings(version, Path(made))
        _unpack(version, bindings.packages)
        _compile_shim(version, bindings.libraries)
        _write_stubs(bindings)
        shutil.copytree(made, folder, dirs_exist_ok=True)
    return Bindings(version, folder)


def _unpack(version: Version, packages: Path) -> None:
    with tempfile.TemporaryDirectory() as downloads:
        bindings = _download(f"tensorrt-cu13-bindings=={version.number}", version.sha256[_TAG], Path(downloads) / "bindings")
        stubgen = _download(STUBGEN, STUBGEN_SHA256, Path(downloads) / "stubgen")
        for wheel in (bindings, stubgen):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(packages)


def _download(requirement: str, sha256: str, folder: Path) -> Path:
    command = ["-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    try:
        _python([*command, "--dest", str(folder), requirement])
    except subprocess.CalledProcessError as error:
        raise UnavailableError(f"pip cannot download {requirement}: {error.stderr.strip().splitlines()[-1:]}") from error
    wheel = next(folder.glob("*.whl"))
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != sha256:
        raise AssertionError(f"{wheel.name} has the digest {found}, not {sha256}")
    return wheel


def _compile_shim(version: Version, libraries: Path) -> None:
    libraries.mkdir()
    source = libraries / "shim.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in SHIM_FUNCTIONS))
    for library in SHIM_LIBRARIES:
        name = f"lib{library}.so.{version.major}"
        command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(libraries / name), str(source)]
        subprocess.run(command, check=True, capture_output=True)


def _write_stubs(bindings: Bindings) -> None:
    raw = bindings.folder / "raw"
    command = ["-m", "pybind11_stubgen", "tensorrt_bindings.tensorrt", "--output-dir", str(raw), "--ignore-all-errors"]
    _python(command, bindings.libraries, bindings.packages)
    text = repaired((raw / "tensorrt_bindings" / "tensorrt.pyi").read_text(encoding="utf-8"))
    package = bindings.stubs / "tensorrt"
    package.mkdir(parents=True)
    # What the package adds in Python.
    (package / "__init__.pyi").write_text(text + "\n__version__: str\n", encoding="utf-8")
    shutil.rmtree(raw)


def repaired(stub: str) -> str:
    """`stub` as Python: without docstrings, and a signature with a default that pybind11 could not spell takes anything."""
    lines = stub.splitlines()
    for _ in range(_MOST_REPAIRS):
        try:
            return "import builtins\n" + ast.unparse(_Cleaner().visit(ast.parse("\n".join(lines))))
        except SyntaxError as error:
            place = (error.lineno or 1) - 1
            found = re.match(r"(\s*)def (\w+)\((self)?", lines[place])
            if found is None:
                raise
            first = "self, " if found[3] else ""
            lines[place] = f"{found[1]}def {found[2]}({first}*args: typing.Any, **kwargs: typing.Any) -> typing.Any:"
            if lines[place + 1].strip() not in ("...", '"""'):
                raise
    raise AssertionError("the generated stub cannot be repaired")


class _Cleaner(ast.NodeTransformer):
    """Drops docstrings, and says which `bool` is meant: TensorRT has a data type of that name."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.parse("builtins.bool", mode="eval").body if node.id == "bool" else node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._visit_body(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._visit_body(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = self.visit(node.annotation)  # and not its name, which may be the data type's
        return node

    def _visit_body(self, node: ast.ClassDef | ast.FunctionDef) -> ast.AST:
        if ast.get_docstring(node, clean=False) is not None:
            node.body = [*node.body[1:], ast.Expr(ast.Constant(...))]
        return self.generic_visit(node)


def _python(arguments: Sequence[str], libraries: Path | None = None, *paths: Path) -> str:
    environment = dict(os.environ)
    if libraries is not None:
        environment["LD_LIBRARY_PATH"] = str(libraries)
    if paths:
        environment["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    ran = subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True, env=environment)
    return ran.stdout


if __name__ == "__main__":
    for wanted in VERSIONS:
        sys.stdout.write(f"{prepare(wanted).stubs}\n")
