"""One configuration = one TOML file = one digest that names its results everywhere.

The file is read into frozen dataclasses; unknown keys are errors that name the nearest known key, and options that
exclude each other are refused with the reason.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from tracekit._fields import build, nearest, plain
from tracekit.digest import digest_json
from tracekit.errors import ConfigError
from tracekit.pruning import PRUNERS, NoneConfig, Pruner, Reduction

__all__ = [
    "ACROSS_STEPS",
    "Configuration",
    "ExecutionConfig",
    "ObserveConfig",
    "ReuseConfig",
    "load_config",
    "preset_names",
]

ReuseKind = Literal["none", "encoders", "prefix_kv", "mask", "skip_frame"]

ACROSS_STEPS = frozenset({"mask", "skip_frame"})
"""Kinds of reuse from one control step to the next; the others reuse within a step."""

LONGEST_NAME = 100


@dataclass(frozen=True, slots=True)
class ObserveConfig:
    """Where a pruner that must see a forward pass gets its observables.

    `current`: denoise pass 0 of the same step runs unpruned and supplies them; passes 1, 2, … are pruned. `lagged`: the
    mask of a step comes from what pass 0 of the step before showed, so that all passes are pruned; every
    `refresh_every`-th step, the first among them, runs unpruned. `feedback`: what a lagged pruner is shown, its `own`
    pruned pass (what a live run does) or the `recorded` unpruned one (an approximation, in replays only).
    `refresh_every` also says how long `reuse.kind = "mask"` keeps a mask.
    """

    mode: Literal["current", "lagged"] = "current"
    feedback: Literal["own", "recorded"] = "own"
    refresh_every: int = 7

    def __post_init__(self) -> None:
        if self.refresh_every < 1:
            raise ConfigError(f"observe.refresh_every = {self.refresh_every}: must be at least 1")
        if self.mode == "current" and self.feedback != "own":
            raise ConfigError('observe.feedback is read by observe.mode = "lagged" only; remove it')

    def refreshes(self, step: int) -> bool:
        """Whether control step `step` (1-based) runs unpruned whatever was decided: the first, and every so many."""
        return self.mode == "lagged" and (step - 1) % self.refresh_every == 0


@dataclass(frozen=True, slots=True)
class ReuseConfig:
    """What is computed less often than the release computes it; the same axis for every pruner.

    `none`: encoders and the whole sequence in every pass (as the release runs). `encoders`: encoders once per control
    step. `prefix_kv`: keys and values of the prefix once per control step, then only the tail. These two need
    `fps = pinned`: every pass sees the point tokens of pass 0. `mask`: a mask stays for `observe.refresh_every` steps:
    it is decided at steps 2, 2 + refresh_every, …, and nothing is observed in between. `skip_frame`: every second
    action is the one before, repeated without a forward pass.

    `kv`: what `prefix_kv` does after an unpruned pass 0: `reprefill` computes the kept rows anew, `drop` cuts the
    others out of the cache (the kept ones have then seen the dropped).
    """

    kind: ReuseKind = "none"
    fps: Literal["recorded", "pinned"] = "recorded"
    kv: Literal["reprefill", "drop"] = "reprefill"

    def __post_init__(self) -> None:
        if self.kv == "drop" and self.kind != "prefix_kv":
            raise ConfigError(f'reuse.kv = "drop" cuts rows out of a cache, and reuse.kind = "{self.kind}" keeps none')
        if self.kind in {"encoders", "prefix_kv"} and self.fps != "pinned":
            raise ConfigError(
                f'reuse.kind = "{self.kind}" needs reuse.fps = "pinned": with freely drawn FPS starts every denoise '
                "pass has other point tokens, so nothing computed from them can be reused"
            )


@dataclass(frozen=True, slots=True)
class ExecutionConfig:
    """How forward passes are computed.

    `threads`: intra-operation threads, part of any bitwise claim. `mode`: `latency` computes one step at a time, bit
    for bit as a live run does; `throughput` computes several steps of a replay together, equal to rounding only, and
    says nothing about latency. `drop`: dropped `rows` leave the computation; as a `mask` they stay, hidden from the
    others, which saves nothing and is meant for teaching.
    """

    dtype: Literal["float32", "bfloat16"] = "float32"
    threads: int = 2
    mode: Literal["latency", "throughput"] = "latency"
    drop: Literal["rows", "mask"] = "rows"

    def __post_init__(self) -> None:
        if not 1 <= self.threads <= 1024:
            raise ConfigError(f"execution.threads = {self.threads}: must lie in [1, 1024]")


@dataclass(frozen=True)
class Configuration:
    """A resolved configuration. `pruner` is the frozen config dataclass of `PRUNERS[kind]`."""

    name: str = "none"
    kind: str = "none"
    pruner: Any = field(default_factory=NoneConfig)
    observe: ObserveConfig = field(default_factory=ObserveConfig)
    reuse: ReuseConfig = field(default_factory=ReuseConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)

    def __post_init__(self) -> None:
        if self.method.needs_pinned_fps(self.pruner) and self.reuse.fps != "pinned":
            raise ConfigError(
                f'pruner {self.kind!r} as configured scores single point tokens and needs reuse.fps = "pinned": '
                "with freely drawn FPS starts a point token's index means nothing across passes"
            )
        self._refuse_incompatible()
        reduction = getattr(self.pruner, "reduction", None)
        if reduction is not None and reduction.passes != "first" and self.observe.feedback != "recorded":
            raise ConfigError(
                f'pruner.reduction.passes = "{reduction.passes}" needs unpruned later passes, and this pruner prunes '
                'them; use passes = "first", or observe.mode = "lagged" with feedback = "recorded"'
            )

    def _refuse_incompatible(self) -> None:
        observes = self.method.observes == "forward"
        if self.reuse.kv == "drop" and (not observes or self.observe.mode != "current"):
            raise ConfigError(
                'reuse.kv = "drop" cuts rows out of the cache of an unpruned pass 0, and only a pruner that observes '
                'it has one, with observe.mode = "current"; use kv = "reprefill"'
            )
        if self.reuse.kind == "mask" and self.method.needs_pinned_fps(self.pruner):
            raise ConfigError(
                f'reuse.kind = "mask" keeps a mask over several steps, and pruner {self.kind!r} as configured picks '
                "single point tokens, whose indices mean nothing at another step; use another reuse"
            )
        if self.observe.mode == "current" and self.observe.refresh_every != 7 and self.reuse.kind != "mask":
            raise ConfigError(
                'observe.refresh_every is read by observe.mode = "lagged" and by reuse.kind = "mask" only; remove it'
            )

    def refreshes(self, step: int) -> bool:
        """Whether control step `step` (1-based) runs unpruned whatever was decided.

        A refresh that is due at a step that only repeats an action is made up for at the next.
        """
        if self.method.observes != "forward":
            return False
        missed = self.reuse.kind == "skip_frame" and step > 1 and self.observe.refreshes(step - 1)
        return missed or self.observe.refreshes(step)

    def repeats(self, step: int) -> bool:
        """Whether control step `step` (1-based) repeats the action before it without a forward pass."""
        return self.reuse.kind == "skip_frame" and step % 2 == 0

    @property
    def method(self) -> Pruner:
        """The pruner's functions and requirements."""
        return PRUNERS[self.kind]

    @property
    def labels(self) -> tuple[str, ...]:
        """What stands beside every result: how it was computed, where that changes what the numbers mean."""
        found = {
            "mask-only": self.execution.drop == "mask",
            "throughput": self.execution.mode == "throughput",
            "kv = drop": self.reuse.kv == "drop",
            f"reuse = {self.reuse.kind}": self.reuse.kind in ACROSS_STEPS,
        }
        return tuple(label for label, holds in found.items() if holds)

    @property
    def reduction(self) -> Reduction:
        """How observables become scores for a pruner that reads them: its own option, or the default."""
        own: Reduction | None = getattr(self.pruner, "reduction", None)
        return Reduction() if own is None else own

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the canonical resolved form; the name is a label and not part of it."""
        return digest_json({key: value for key, value in self.to_json().items() if key != "name"})

    def to_json(self) -> dict[str, Any]:
        """The resolved configuration as plain tables, in the TOML's schema: `from_table` reads it back."""
        observing: dict[str, Any] = {}
        if self.method.observes == "forward":
            observing = {"observe": plain(self.observe)}
        elif self.reuse.kind == "mask":
            observing = {"observe": {"refresh_every": self.observe.refresh_every}}
        return {
            "name": self.name,
            "pruner": {"kind": self.kind, **plain(self.pruner)},
            **observing,
            "reuse": plain(self.reuse),
            "execution": plain(self.execution),
        }

    @classmethod
    def from_table(cls, table: Mapping[str, Any], where: str) -> Configuration:
        """Build from the TOML's tables; `where` names the file in messages. Raises ConfigError."""
        try:
            return cls._from_table(table)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None

    @classmethod
    def _from_table(cls, table: Mapping[str, Any]) -> Configuration:
        known = ("name", "pruner", "observe", "reuse", "execution")
        for key in table:
            if key not in known:
                raise ConfigError(f"{key}: unknown key; {nearest(key, known)}")
        for key in known[1:]:
            if not isinstance(table.get(key, {}), Mapping):
                raise ConfigError(f"{key} = {table[key]!r}: must be a table, [{key}]")
        pruner = dict(table.get("pruner", {}))
        kind = pruner.pop("kind", None)
        if not isinstance(kind, str) or kind not in PRUNERS:
            what = "pruner.kind is missing" if kind is None else f"pruner.kind = {kind!r}: no such pruner"
            raise ConfigError(f"{what}; {nearest('' if kind is None else str(kind), PRUNERS)}")
        method = PRUNERS[kind]
        reuse = build(ReuseConfig, table.get("reuse", {}), "reuse")
        read = {"refresh_every"} if reuse.kind == "mask" else set()
        stray = "observe" in table and (not read or not set(table["observe"]) <= read)
        if method.observes != "forward" and stray:
            raise ConfigError(
                f"[observe] has no meaning for pruner {kind!r}, which chooses no forward pass to look at; remove it"
            )
        name = table.get("name", kind)
        if not isinstance(name, str) or not name.isprintable() or not 1 <= len(name) <= LONGEST_NAME:
            raise ConfigError(f"name = {name!r:.60}: give 1 to {LONGEST_NAME} printable characters")
        return cls(
            name=name,
            kind=kind,
            pruner=build(method.config, pruner, "pruner"),
            observe=build(ObserveConfig, table.get("observe", {}), "observe"),
            reuse=reuse,
            execution=build(ExecutionConfig, table.get("execution", {}), "execution"),
        )


def preset_names() -> tuple[str, ...]:
    """Names of the configurations that ship with the package."""
    folder = resources.files("tracekit") / "presets"
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")))


def load_config(source: str | Path) -> Configuration:
    """The configuration in the TOML file `source`, or the preset of that name.

    Raises ConfigError (one line: file, key, what to do) if there is none or it cannot be used.
    """
    return Configuration.from_table(_table(source), str(source))


def _table(source: str | Path) -> dict[str, Any]:
    try:
        if str(source) in preset_names():
            text = (resources.files("tracekit") / "presets" / f"{source}.toml").read_text("utf-8")
        elif Path(source).is_file():
            text = Path(source).read_text("utf-8-sig")
        else:
            raise ConfigError(f"{source}: no such file or preset; presets: {', '.join(preset_names())}")
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not valid TOML: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{str(source)[:200]}: cannot be read as UTF-8 text ({error}); give a TOML file") from None
    except ValueError as error:  # of Python itself: a number with thousands of digits, a path with a zero byte
        raise ConfigError(f"{str(source)[:200]!r}: not usable ({error}); give a TOML file of plain values") from None
    except RecursionError:
        raise ConfigError(f"{source}: nested too deeply; a configuration has tables in tables and no more") from None
