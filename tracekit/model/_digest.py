"""Digests that identify a policy: its configuration and its weights."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tracekit.digest import digest_arrays, digest_json
from tracekit.model.config import MLAConfig

__all__ = ["config_digest", "weights_digest"]


def config_digest(config: MLAConfig) -> str:
    """SHA-256 hex of the configuration in canonical JSON; the name is not part of it."""
    return digest_json({key: value for key, value in config.to_json().items() if key != "name"})


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 hex over name, dtype, shape and bytes of all `tensors`, in sorted order of names."""
    return digest_arrays({name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()})
