"""The runs that a configuration is measured against."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tracekit.config import ACROSS_STEPS, Configuration, ObserveConfig, ReuseConfig

__all__ = ["References"]


@dataclass(frozen=True, slots=True)
class References:
    """What a configuration is measured against.

    Unpruned: as released (`full`), with cached `encoders`, with its `reuse` within a step, and `unpruned`, with all of
    its reuse. Pruned: `every_step`, without the reuse across steps.
    """

    full: Configuration
    encoders: Configuration
    reuse: Configuration
    unpruned: Configuration
    every_step: Configuration

    @classmethod
    def of(cls, config: Configuration) -> References:
        """Those of `config`."""
        unpruned = Configuration(execution=config.execution)
        cached = replace(unpruned, reuse=ReuseConfig(kind="encoders", fps="pinned"))
        across = config.reuse.kind in ACROSS_STEPS
        within = ReuseConfig(fps=config.reuse.fps) if across else replace(config.reuse, kv="reprefill")
        reuse = replace(unpruned, reuse=within)
        observe = ObserveConfig() if config.observe.mode == "current" else config.observe
        return cls(
            full=unpruned,
            encoders=unpruned if within.kind == "none" else cached,
            reuse=reuse,
            unpruned=replace(unpruned, reuse=config.reuse) if config.reuse.kind == "skip_frame" else reuse,
            every_step=replace(config, reuse=within, observe=observe) if across else config,
        )

    def timed_for(self, config: Configuration) -> tuple[Configuration, ...]:
        """What to time for the factors; without reuse the first two are 1 by definition, whatever the FPS starts."""
        reuse = self.full if self.reuse.reuse.kind == "none" else self.reuse
        return (self.full, self.encoders, reuse, self.every_step, config)
