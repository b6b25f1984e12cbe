"""Networks of diffusers and transformers: reading from their files, and writing to one safetensors file each."""

import json
from pathlib import Path
from typing import Any

import torch

from stillhouse.backends.runtime import first_error_line
from stillhouse.backends.safetensors_index import read_safetensors_index
from stillhouse.convert.source import REDOWNLOAD
from stillhouse.errors import ImportFailed

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Supported dtypes of weights, by their names in safetensors files. The widest dtype comes first."""


def read_module(folder: Path, kind: Any, dtype: str | None) -> Any:
    """Read a network of diffusers or transformers from a directory.

    Args:
        folder: directory with config.json and weights.
        kind: the network's class in diffusers or transformers.
        dtype: float32, float16 or bfloat16; None: the widest dtype in the files.

    Raises:
        ImportFailed: the weights are missing, broken, or of another network; or `dtype` is another dtype than these.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ImportFailed(f"there is no dtype {dtype!r}", allowed=", ".join(DTYPES))
    files = _weight_files(folder)
    variant = "fp16" if all(".fp16" in file.name for file in files) else None
    try:
        torch_dtype = DTYPES[dtype] if dtype else _stored_dtype(files)
        network, report = kind.from_pretrained(
            folder, dtype=torch_dtype, variant=variant, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # the exceptions differ between libraries and file formats
        raise ImportFailed(f"{folder} cannot be read: {first_error_line(str(error))}", fix=REDOWNLOAD) from error
    wrong = sorted({*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])})
    if wrong:
        raise ImportFailed(
            f"{folder} has no fitting weights for {len(wrong)} tensors of the network, such as {', '.join(wrong[:3])}",
            fix=REDOWNLOAD,
        )
    return network


def write_module(network: Any, folder: Path) -> Path:
    """Write a network as one safetensors file with its config.json; return the file's path."""
    network.save_pretrained(folder, max_shard_size="10TB")
    path = folder / "config.json"
    config = json.loads(path.read_bytes())
    config.pop("_name_or_path", None)  # dropped, since this entry is a path on this machine
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (file,) = folder.glob("*.safetensors")
    return file


def _weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a directory, or its .bin files if it has no safetensors files.

    Raises:
        ImportFailed: the directory has neither.
    """
    for pattern in ("*model*.safetensors", "*model*.bin"):
        files = [file for file in sorted(folder.glob(pattern)) if "non_ema" not in file.name]
        if files:
            return files
    raise ImportFailed(f"{folder} has no weights", allowed="*.safetensors or *.bin", fix=REDOWNLOAD)


def _stored_dtype(files: list[Path]) -> torch.dtype:
    """Return the widest floating-point dtype of the tensors in the files; float32 where no dtype is supported."""
    if files[0].suffix == ".safetensors":
        names = {tensor.dtype for file in files for tensor in read_safetensors_index(file).values()}
        dtypes = {STORED[name] for name in names & STORED.keys()}
    else:
        tensors = torch.load(files[0], map_location="cpu", mmap=True, weights_only=True).values()
        dtypes = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    return next((dtype for dtype in STORED.values() if dtype in dtypes), torch.float32)
