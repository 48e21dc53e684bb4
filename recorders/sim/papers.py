"""The papers of a policy: what its training wrote down, in the policy's directory or in the run's around it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tracekit.errors import PolicyError

__all__ = ["SUMMARY", "papers_of", "trained_tasks"]

SUMMARY = "training.json"
"""File of `TrainingSummary.to_json`: beside the policy in the folder of a run, inside it once it is published."""


def papers_of(policy: Path, weights_digest: str) -> dict[str, Any] | None:
    """What is written of the weights `weights_digest` that lie in the directory `policy`; None without papers of these.

    Raises PolicyError for a file that cannot be read.
    """
    for path in (policy / SUMMARY, policy.parent / SUMMARY):
        try:
            found = json.loads(path.read_text("utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:
            raise PolicyError(f"{path}: cannot be read ({error}); mend or remove it") from error
        if isinstance(found, dict) and found.get("weights_digest") == weights_digest:
            return found
    return None


def trained_tasks(policy: Path, weights_digest: str) -> frozenset[str] | None:
    """Tasks that these weights were trained on; None where no papers tell. Raises PolicyError as `papers_of` does."""
    papers = papers_of(policy, weights_digest)
    try:
        return None if papers is None else frozenset(papers["plan"]["tasks"])
    except (KeyError, TypeError) as error:
        raise PolicyError(f"{policy}: its {SUMMARY} names no tasks ({error!r}); mend or remove it") from error
