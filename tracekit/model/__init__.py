"""The MLA policy: configuration, encoders, LLaMA backbone, action diffusion, checkpoints.

`load_directory` opens a stored policy. The name `reference` is registered for `tracekit.policy.load_policy`.
"""

from __future__ import annotations

from pathlib import Path

from tracekit.errors import PolicyError
from tracekit.model.cameras import CAMERAS
from tracekit.model.checkpoint import initialise, is_policy_directory, load_policy_directory, save_policy
from tracekit.model.config import MLAConfig, Normalisation, mla_7b, reference
from tracekit.model.policy import MLA, MLATokens
from tracekit.model.release import ReleaseOptions, is_run_directory, load_release
from tracekit.model.release_writing import save_release
from tracekit.model.text import IdTable, TextTokenizer, WordTokenizer
from tracekit.model.vocabulary import REFERENCE_WORDS
from tracekit.policy import Policy, Precision, register_policy
from tracekit.weights import packaged_policy

__all__ = [
    "CAMERAS",
    "MLA",
    "REFERENCE_WORDS",
    "IdTable",
    "MLAConfig",
    "MLATokens",
    "Normalisation",
    "ReleaseOptions",
    "TextTokenizer",
    "WordTokenizer",
    "initialise",
    "load_directory",
    "load_policy_directory",
    "load_release",
    "mla_7b",
    "reference",
    "reference_policy",
    "save_policy",
    "save_release",
]


def load_directory(path: Path, precision: Precision) -> Policy:
    """The policy stored in directory `path`, frozen at `precision`; raises PolicyError (one line) if it cannot be."""
    if is_policy_directory(path):
        return load_policy_directory(path).freeze(precision)
    if is_run_directory(path):
        policy, _ = load_release(path)
        return policy.freeze(precision)
    raise PolicyError(
        f"{path}: no policy here (neither model.safetensors nor a run of MLA); give a directory that holds one"
    )


def reference_policy(precision: Precision) -> MLA:
    """The small policy of the embedded simulator, with the trained weights that ship with the package."""
    directory = packaged_policy("reference")
    if directory is None:
        raise PolicyError("policy 'reference': its weights are missing from this installation; install tracekit anew")
    return load_policy_directory(directory).freeze(precision)


register_policy("reference", reference_policy)
