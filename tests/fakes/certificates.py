"""Certificates for one test run, made by the openssl command."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl command makes the test's certificates")
_NAMES = "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:127.0.0.4"


@dataclass(frozen=True)
class Certificates:
    """PEM files: an authority, and a certificate with its key that it signed, good for servers and clients."""

    root: Path
    cert: Path
    key: Path


def make_certificates(folder: Path) -> Certificates:
    """A new authority and one certificate for this machine's loopback."""
    folder.mkdir()
    made = Certificates(folder / "root.pem", folder / "node.pem", folder / "node.key")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    root_key = folder / "root.key"
    _openssl("req", "-x509", *key, "-keyout", root_key, "-out", made.root, "-days", "2", "-subj", "/CN=a test's authority")
    _openssl("req", *key, "-keyout", made.key, "-out", folder / "node.csr", "-subj", "/CN=localhost")
    (folder / "names").write_text(_NAMES)
    signed = ["-CA", made.root, "-CAkey", root_key, "-CAcreateserial", "-days", "2", "-extfile", folder / "names"]
    _openssl("x509", "-req", "-in", folder / "node.csr", *signed, "-out", made.cert)
    return made


def _openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)
