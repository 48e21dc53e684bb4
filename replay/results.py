"""Replay results in memory and on disk: a saved replay is a store with an episode per configuration and episode."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from replay.accuracy import EpisodeReplay, StepReplay
from replay.source import TraceSource
from replay.sources import program_versions
from replay.summary import Summary
from tracekit.config import Configuration
from tracekit.digest import digest_arrays
from tracekit.engine import decision_shape
from tracekit.errors import TraceError
from tracekit.fingerprint import environment_fingerprint
from tracekit.pruning import Observables, Scores, decision_digest, observed_patches, reduce
from tracekit.store import ArraySpec, Episode, EpisodeInfo, Trace, TraceWriter, refuse_inside_store

__all__ = ["REPLAY_FORMAT", "ReplayResult", "SavedReplay", "StepDigests", "check_target"]

REPLAY_FORMAT = "tracekit.replay"


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """What a replay found.

    `summaries` in the order of the configurations; `episodes`: configuration name -> episodes. `recorded_fingerprint`:
    the environment that recorded the trace. `check`: what a second run showed, None if there was none.
    """

    trace: Path
    trace_digest: str
    summaries: tuple[Summary, ...]
    episodes: Mapping[str, Sequence[EpisodeReplay]]
    recorded_fingerprint: Mapping[str, Any] = field(default_factory=dict)
    policy_trained: bool = True
    check: Mapping[str, Any] | None = None

    @classmethod
    def of(
        cls, source: TraceSource, summaries: Sequence[Summary], episodes: Mapping[str, Sequence[EpisodeReplay]]
    ) -> ReplayResult:
        """Put the parts together."""
        about = source.trace.attributes
        trained = bool(about["policy"]["trained"])
        return cls(source.path, source.trace.digest, tuple(summaries), episodes, about.get("fingerprint", {}), trained)

    @property
    def environment_differs(self) -> list[str]:
        """In what this environment differs from the one that recorded the trace; empty where it does not."""
        here = {**environment_fingerprint(), "threads": None}
        there = {**self.recorded_fingerprint, "threads": None}
        differ = [key for key in sorted(here.keys() | there.keys()) if here.get(key) != there.get(key)]
        threads = {summary.config.execution.threads for summary in self.summaries}
        return [*differ, *(["threads"] if threads != {self.recorded_fingerprint.get("threads")} else [])]

    def to_json(self) -> dict[str, Any]:
        """The object that `replay --json` prints."""
        some = next(iter(self.episodes.values()))
        return {
            "trace": str(self.trace),
            "trace_digest": self.trace_digest,
            "open_loop": True,
            "episodes": [episode.id for episode in some],
            "steps": sum(len(episode.steps) for episode in some),
            "policy_trained": self.policy_trained,
            "fingerprint": environment_fingerprint(),
            "environment_differs": self.environment_differs,
            "check": None if self.check is None else dict(self.check),
            "versions": program_versions(),
            "configurations": [summary.to_json() for summary in self.summaries],
        }

    def save(self, path: str | Path) -> None:
        """Write a `tracekit.replay` store to `path`, complete or not at all; raises TraceError as `check_target`."""
        target = Path(path)
        check_target(target)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            self._write(partial, target)
            partial.rename(target)
        except OSError as error:
            raise TraceError(f"{target}: cannot be written ({error.strerror}); give --out another path") from error
        except TraceError as error:
            raise TraceError(str(error).replace(str(partial), str(target))) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _write(self, path: Path, target: Path) -> None:
        configs = {summary.config.name: summary.config for summary in self.summaries}
        manifest = self.to_json() | {
            "trace": os.path.relpath(self.trace.resolve(), target.resolve()),
            "tables": {name: config.to_json() for name, config in configs.items()},
        }
        with TraceWriter.create(path, {"kind": "replay", **manifest}, format=REPLAY_FORMAT) as writer:
            for number, (name, episodes) in enumerate(self.episodes.items()):
                for index, episode in enumerate(episodes):
                    info = EpisodeInfo(
                        id=f"{number}.{index}",  # names are free text; here they could clash, or be no folder's name
                        task=name,
                        uid=index,
                        attributes={"configuration": name, "episode": episode.id},
                    )
                    _save_episode(writer, info, [_step_arrays(step, configs[name]) for step in episode.steps])


def check_target(path: Path) -> None:
    """Refuse (TraceError) a place where no replay can be saved, before hours are spent on what would go there."""
    try:
        if path.exists() or path.is_symlink():
            raise TraceError(f"{path}: exists already; give --out another path, or remove it")
        parents = [parent for parent in path.absolute().parents if parent.exists()]
    except OSError as error:
        raise TraceError(f"{str(path)[:200]}: no usable path ({error.strerror}); give --out another") from None
    refuse_inside_store(path)
    if not parents[0].is_dir() or not os.access(parents[0], os.W_OK | os.X_OK):
        raise TraceError(f"{path}: nothing can be made in {parents[0]}; give --out another path")


def _save_episode(writer: TraceWriter, info: EpisodeInfo, rows: Sequence[Mapping[str, npt.NDArray[Any]]]) -> None:
    with writer.episode(info, _schema(rows)) as stored:
        for row in rows:
            stored.append(row)
        stored.finish()


def _schema(rows: Sequence[Mapping[str, npt.NDArray[Any]]]) -> dict[str, ArraySpec]:
    """Declarations of all arrays; those that some step lacks (no reason is given for a cold start) are optional."""
    schema: dict[str, ArraySpec] = {}
    for row in rows:
        for key, value in row.items():
            axes = tuple(f"axis_{axis}" for axis in range(value.ndim))
            missing = any(key not in other for other in rows)
            schema[key] = ArraySpec(dtype=str(value.dtype), shape=value.shape, axes=axes, optional=missing)
    return schema


def _step_arrays(step: StepReplay, config: Configuration) -> dict[str, npt.NDArray[Any]]:
    result, decision = step.result, step.result.decision
    arrays: dict[str, npt.NDArray[Any]] = {
        "digest/decision": np.frombuffer(bytes.fromhex(decision_digest([decision])), np.uint8),
        "decision/kept": result.kept,
        "decision/pruned_from": np.asarray(result.pruned_from, np.int32),
        "action/samples": result.samples,
        "action/policy": result.action,
        "timing/stages_ns": result.times_ns,
        "timing/wall_ns": np.asarray(result.wall_ns, np.int64),
    }
    for name, mask in (
        ("s1", decision.s1),
        ("s2", decision.s2),
        ("cluster", decision.cluster),
        ("conflict", decision.conflict),
    ):
        if mask is not None:
            arrays[f"decision/{name}"] = mask
    arrays["decision/mask_2d"] = decision.keep_2d
    if decision.keep_3d_patches is not None:
        arrays["decision/mask_3d"] = decision.keep_3d_patches
    if decision.keep_3d_tokens is not None:
        arrays["decision/mask_3d_tokens"] = decision.keep_3d_tokens
    for name, margin in decision.margins.items():
        arrays[f"margin/{name}"] = margin
    for name, indicator in decision.indicators.items():
        arrays[f"indicator/{name}"] = indicator
    return arrays | _seen_arrays(step, config)


def _seen_arrays(step: StepReplay, config: Configuration) -> dict[str, npt.NDArray[Any]]:
    """What pass 0 of this step showed to a pruner that reads scores, and of which patches: what a decision is from."""
    if config.method.reads == "observables":
        return _observed_digest(step, config)
    if config.method.reads != "scores" or config.method.observes != "forward":
        return {}
    result = step.result
    shape = decision_shape(result.layout)
    recorded = config.observe.feedback == "recorded"
    if isinstance(step.recorded.seen, Scores) and recorded:
        seen, observed = step.recorded.seen, np.ones(shape.n_2d, np.bool_)
    elif result.observables is not None:
        seen = reduce(result.observables, config.reduction, shape)
        kept = result.kept[0]
        patch = (
            result.observables.patch if result.observables.nearest_patch is None else result.observables.nearest_patch
        )
        patch = np.full(shape.n_3d, -1, np.int32) if patch is None else patch
        observed = observed_patches(kept[: shape.n_2d], kept[shape.n_2d :], patch)
    else:
        return {}
    scores = {f"seen/{item.name}": np.asarray(getattr(seen, item.name)) for item in fields(Scores)}
    return scores | {"seen/observed": observed}


def _observed_digest(step: StepReplay, config: Configuration) -> dict[str, npt.NDArray[Any]]:
    """Digest of the observables that the pruner reads of this step: too large to save, and enough to compare."""
    recorded = config.observe.feedback == "recorded"
    seen = step.recorded.seen if recorded else step.result.observables
    if not isinstance(seen, Observables):
        return {}
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name in sorted(config.method.requires(config.pruner)):
        value = getattr(seen, name, None)
        parts = value if isinstance(value, Mapping) else {"": value}
        arrays |= {f"{name}/{part}": np.asarray(array) for part, array in parts.items() if array is not None}
    return {"digest/seen": np.frombuffer(bytes.fromhex(digest_arrays(arrays)), np.uint8)}


@dataclass(frozen=True, slots=True)
class StepDigests:
    """What two replays are compared by, per step of one configuration."""

    episode: str
    step: int
    decision: bytes
    action: bytes


class SavedReplay:
    """A replay that was saved; opened for comparison and for reports."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.store = Trace.open(self.path, format=REPLAY_FORMAT)
        self.manifest = self.store.attributes

    @property
    def trace_path(self) -> Path:
        """Where the replayed trace was when the replay was saved."""
        return Path(os.path.normpath(self.path / self.manifest["trace"]))

    @property
    def configurations(self) -> dict[str, dict[str, Any]]:
        """Name -> summary, as `replay --json` printed it."""
        return {summary["name"]: summary for summary in self.manifest["configurations"]}

    def episodes(self, configuration: str) -> list[tuple[str, Episode]]:
        """(trace episode id, stored episode) of one configuration.

        Raises TraceError naming the configurations that are there, or if the replay was not saved to its end.
        """
        if configuration not in self.configurations:
            known = ", ".join(self.configurations)
            raise TraceError(f"{self.path}: no configuration {configuration!r}; it has: {known}")
        stored = {
            info.attributes["episode"]: info.id
            for info in self.store.episodes
            if info.attributes["configuration"] == configuration
        }
        for name in self.manifest["episodes"]:
            if name not in stored:
                raise TraceError(
                    f"{self.path}: the replay was not saved to its end, episode {name!r} of {configuration!r} is "
                    "missing; replay and save it again"
                )
        return [(name, self.store.episode(stored[name])) for name in self.manifest["episodes"]]

    def digests(self, configuration: str) -> list[StepDigests]:
        """Per-step digests of one configuration, in order."""
        found = []
        for name, episode in self.episodes(configuration):
            decisions, samples = episode.read("digest/decision"), episode.read("action/samples")
            found += [
                StepDigests(name, step, decisions[step].tobytes(), np.ascontiguousarray(samples[step, -1]).tobytes())
                for step in range(len(decisions))
            ]
        return found
