"""A policy as a directory: config.json, model.safetensors and the tokenizer's file."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from tracekit.errors import PolicyError
from tracekit.model._digest import weights_digest
from tracekit.model.config import MLAConfig
from tracekit.model.layers import BatchNorm, LayerNorm, RMSNorm, StdNorm
from tracekit.model.policy import MLA
from tracekit.model.text import TextTokenizer, load_tokenizer

__all__ = ["initialise", "load_policy_directory", "load_weights", "save_policy"]

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
FORMAT = "tracekit.policy"
ALIGNMENT = 64
"""Bytes. BLAS takes other paths for operands that start elsewhere, and a product may differ in its last bit; torch
allocates on this boundary and its .pt files are laid out on it, but .safetensors files are not."""


def load_weights(policy: MLA, tensors: Mapping[str, Tensor], where: str) -> None:
    """Put `tensors` into `policy`, copying only where it must.

    Raises one PolicyError that names every tensor that is missing, unexpected or misshaped.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in policy.state_dict().items()}
    problems = [f"missing {name} {shape}" for name, shape in wanted.items() if name not in tensors]
    problems += [f"unexpected {name} {tuple(tensor.shape)}" for name, tensor in tensors.items() if name not in wanted]
    problems += [
        f"{name} is {tuple(tensors[name].shape)} instead of {shape}"
        for name, shape in wanted.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    if problems:
        raise PolicyError(
            f"{where}: {len(problems)} tensors do not fit: {'; '.join(problems)}; load it with the right configuration"
        )
    policy.load_state_dict({name: _settled(tensor) for name, tensor in tensors.items()}, assign=True)
    policy.eval()


def _settled(tensor: Tensor) -> Tensor:
    """`tensor` in float32 (if it is floating point), at an address where products round as everywhere else."""
    tensor = tensor.float() if tensor.is_floating_point() else tensor
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()


def save_policy(policy: MLA, directory: Path) -> None:
    """Write `policy` into a new `directory` that `load_policy_directory` reads back; raises PolicyError if it exists.

    Only float32 weights are saved: a policy frozen in bfloat16 has lost its own.
    """
    if directory.exists():
        raise PolicyError(f"{directory}: exists already; choose another directory")
    if policy.precision.dtype != "float32":
        raise PolicyError(f"policy {policy.config.name!r} runs in {policy.precision.dtype}; save the float32 policy")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in policy.state_dict().items()}
    head = {
        "format": FORMAT,
        "version": 1,
        "trained": policy.trained,
        "weights_digest": weights_digest(tensors),
        "config": policy.config.to_json(),
    }
    partial = directory.with_name(f"{directory.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        safetensors.torch.save_file(tensors, partial / WEIGHTS_FILE)
        (partial / WEIGHTS_FILE).chmod(0o644)  # it is made readable for its owner alone
        policy.tokenizer.save(partial)
        (partial / CONFIG_FILE).write_text(json.dumps(head, indent=1) + "\n", encoding="utf-8")
        partial.rename(directory)
    except (OSError, safetensors.SafetensorError) as error:
        raise PolicyError(f"{directory}: cannot be written ({error}); choose a place with room and access") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def is_policy_directory(directory: Path) -> bool:
    """Whether `directory` looks like one that `save_policy` wrote."""
    return (directory / WEIGHTS_FILE).is_file()


def load_policy_directory(directory: Path) -> MLA:
    """The policy that `save_policy` wrote into `directory`, in float32 and not frozen; raises PolicyError on damage."""
    head = read_json(directory / CONFIG_FILE)
    if head.get("format") != FORMAT or head.get("version") != 1:
        raise PolicyError(
            f"{directory / CONFIG_FILE}: format {head.get('format')!r} version {head.get('version')!r} is not "
            f"{FORMAT!r} version 1; convert the checkpoint anew"
        )
    config = MLAConfig.from_json(head.get("config", {}), str(directory / CONFIG_FILE))
    policy = blank_policy(config, load_tokenizer(directory), trained=bool(head.get("trained")))
    path = directory / WEIGHTS_FILE
    try:
        tensors = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise PolicyError(f"{path}: cannot be read ({error}); restore it from the checkpoint") from error
    load_weights(policy, tensors, str(path))
    found = weights_digest(policy.state_dict())
    if found != head.get("weights_digest"):
        raise PolicyError(f"{path}: its weights are not those that {CONFIG_FILE} was written for; restore both files")
    return policy


def blank_policy(config: MLAConfig, tokenizer: TextTokenizer, *, trained: bool) -> MLA:
    """A policy whose weights take no memory yet; `load_weights` must follow."""
    with torch.device("meta"):
        return MLA(config, tokenizer, trained=trained)


def initialise(policy: MLA, seed: int) -> MLA:
    """Fill `policy` with random weights from `seed`: the same bits on every machine, activations of unit scale.

    Projections are uniform with variance 1 / inputs, those that end a residual branch smaller by √(2·layers) so that
    the stream does not grow with depth. Uniform on purpose: torch's CPU generator gives the same uniforms everywhere,
    while normal draws go through the platform's logarithm.
    """
    generator = torch.Generator().manual_seed(seed)
    branch_end = 1 / math.sqrt(2 * policy.config.layers)
    with torch.no_grad():
        for name, module in policy.named_modules():
            if isinstance(module, RMSNorm | StdNorm | LayerNorm | BatchNorm):
                continue
            for key, parameter in module.named_parameters(recurse=False):
                if key == "bias":
                    parameter.zero_()
                    continue
                inputs = 1 if isinstance(module, nn.Embedding) else parameter[0].numel()
                gain = branch_end if name.endswith(("o_proj", "down_proj")) else 1.0
                bound = gain * math.sqrt(3 / inputs)
                parameter.copy_(torch.rand(parameter.shape, generator=generator).mul_(2).sub_(1).mul_(bound))
    return policy


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; raises PolicyError if there is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PolicyError(f"{path}: cannot be read ({error.strerror}); give the directory of a policy") from error
    except ValueError as error:
        raise PolicyError(f"{path}: not JSON ({error}); restore the file") from error
    if not isinstance(data, dict):
        raise PolicyError(f"{path}: not a JSON object; restore the file")
    return data
