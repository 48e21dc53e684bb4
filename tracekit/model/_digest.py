"""Digests that identify a policy: its configuration and its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor

from tracekit.model.config import MLAConfig

__all__ = ["config_digest", "weights_digest"]


def config_digest(config: MLAConfig) -> str:
    """SHA-256 hex of the configuration as JSON with sorted keys; the name is not part of it."""
    values = {key: value for key, value in config.to_json().items() if key != "name"}
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 hex over name, shape, dtype and bytes of all `tensors`, in sorted order of names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
