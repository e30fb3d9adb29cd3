"""A model repository made from nothing but its size: the same bytes on every machine, so that digests can be compared.

    config.json  generation_config.json  tokenizer.json  README.md     what a language model comes with
    model-0000N-of-00004.safetensors     model.safetensors.index.json  weights, pseudo-random: they do not compress
    original/params.json  special_tokens.empty                         a nested folder; an empty file

Every file is valid for what it claims to be; the weights mean nothing.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from pathlib import Path

REPO = "localmodel/sample"
SHARDS = 4
LAYERS_PER_SHARD = 2
MIN_BYTES = 64 * 1024

_HEADER_BYTES = (
    1024  # of a shard's JSON header, padded with spaces as safetensors allows: sizes do not depend on digits
)
_INDEX_BYTES = 2048
_BLOCK_BYTES = 1 << 20


def write_sample(folder: Path, total_bytes: int) -> None:
    """`folder` holds the sample of exactly `total_bytes`; written only if it is not there yet.

    Appears by one rename, so that a half-written sample is never served. Raises ValueError below MIN_BYTES, and
    OSError when `folder` holds something else.
    """
    if total_bytes < MIN_BYTES:
        raise ValueError(f"the sample needs at least {MIN_BYTES} bytes, not {total_bytes}")
    if sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) == total_bytes:
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write(staging, total_bytes)
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write(folder: Path, total_bytes: int) -> None:
    for name, text in _small_files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    small_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    weights_bytes = total_bytes - small_bytes - _INDEX_BYTES - SHARDS * (8 + _HEADER_BYTES)
    weight_map: dict[str, str] = {}
    for shard in range(SHARDS):
        name = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        start, stop = (weights_bytes * n // SHARDS for n in (shard, shard + 1))
        weight_map |= dict.fromkeys(_write_shard(folder / name, shard, stop - start), name)
    index = {"metadata": {"total_size": weights_bytes}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2).ljust(_INDEX_BYTES - 1) + "\n")


def _write_shard(path: Path, shard: int, weights_bytes: int) -> list[str]:
    """The names of the tensors written. https://huggingface.co/docs/safetensors#format"""
    tensors = {}
    for layer in range(LAYERS_PER_SHARD):
        start, stop = (weights_bytes * n // LAYERS_PER_SHARD for n in (layer, layer + 1))
        name = f"model.layers.{shard * LAYERS_PER_SHARD + layer}.mlp.weight"
        tensors[name] = {"dtype": "U8", "shape": [stop - start], "data_offsets": [start, stop]}
    header = json.dumps({"__metadata__": {"format": "pt"}, **tensors}).encode().ljust(_HEADER_BYTES)
    rng = random.Random(f"{REPO}/{shard}")
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for start in range(0, weights_bytes, _BLOCK_BYTES):
            file.write(rng.randbytes(min(_BLOCK_BYTES, weights_bytes - start)))
    return list(tensors)


def _small_files() -> dict[str, str]:
    layers = SHARDS * LAYERS_PER_SHARD
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": layers,
        "vocab_size": 256,
    }
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    documents = {
        "config.json": config,
        "generation_config.json": {"do_sample": True, "temperature": 0.7, "max_new_tokens": 128},
        "tokenizer.json": {"version": "1.0", "model": {"type": "BPE", "vocab": vocabulary, "merges": []}},
        "original/params.json": {"dim": 64, "n_layers": layers},
    }
    texts = {name: json.dumps(document, indent=2) + "\n" for name, document in documents.items()}
    texts["README.md"] = f"# {REPO}\n\nA made-up model to try localmodel with. The weights are noise.\n"
    texts[".gitattributes"] = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
    texts["special_tokens.empty"] = ""
    return texts
