"""Decisions from what is stored alone: no forward pass, bit-exact on every machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from replay.pruned_live import decide_again
from replay.source import RecordedEpisode, TraceSource
from tracekit.config import Configuration, load_config
from tracekit.engine import decision_shape, keep_everything
from tracekit.errors import TraceError
from tracekit.layout import TokenLayout
from tracekit.pruning import Decision, DecisionKey

__all__ = ["decide_recorded", "refuse_undecidable", "replay_decisions"]


def replay_decisions(
    trace: str | Path, config: str | Path | Configuration, *, episodes: Sequence[str] = ()
) -> dict[str, list[Decision]]:
    """Episode id -> the decision of every step under `config`, from the scores or observables stored in `trace`.

    From stored scores the same bits everywhere (from those that are reduced here and now, wherever NumPy adds float64
    in the same order), and in the environment that recorded the trace those of a forward replay, as long as that
    computes the observed pass as it was recorded: with `reuse = prefix_kv` the pass is split, and its rounding may turn
    a tie. A trace that was pruned while it was recorded gives the decisions of its own configuration, whatever that
    observed, and no others. Raises TraceError if what the configuration's reduction reads, or
    observables that its pruner requires, were not stored, or steps that it remembers were not recorded.
    """
    resolved = config if isinstance(config, Configuration) else load_config(config)
    source = TraceSource(trace)
    if source.pruned_by is not None:
        own = source.pruned_by
        return {episode.info.id: decide_again(episode, resolved, own) for episode in source.episodes(episodes)}
    return {episode.info.id: decide_recorded(episode, resolved) for episode in source.episodes(episodes)}


def refuse_undecidable(config: Configuration) -> None:
    """Raise TraceError where the decisions of `config` depend on what only a forward pass can tell."""
    if config.observe.mode == "lagged" and config.observe.feedback == "own":
        raise TraceError(
            f'{config.name}: observe.feedback = "own": what a pruned pass shows is not in the recording; use a forward '
            'replay (`tracekit replay`, `tracekit sweep --forward`), or feedback = "recorded"'
        )
    if config.reuse.kind not in {"none", "encoders", "prefix_kv"}:
        raise TraceError(
            f'{config.name}: reuse.kind = "{config.reuse.kind}" leaves out steps; use a forward replay '
            "(`tracekit replay`, `tracekit sweep --forward`)"
        )


def decide_recorded(episode: RecordedEpisode, config: Configuration) -> list[Decision]:
    """The decision of every step of `episode` under `config`, one after the other; raises as `replay_decisions`."""
    refuse_undecidable(config)
    if episode.pruned_live:
        raise TraceError(
            f"episode {episode.info.id!r} was pruned while it was recorded, and its passes show the kept tokens only; "
            "use a forward replay, or an unpruned recording"
        )
    shape = decision_shape(TokenLayout.from_json(episode.info.attributes["layout"]))
    memory: Any = config.method.initial_state(config.pruner, shape)
    seed = int(getattr(config.pruner, "seed", 0))
    episode.refuse_gaps(config)
    decisions = []
    for index in range(len(episode)):
        step = episode.number(index)
        shown = index - 1 if config.observe.mode == "lagged" else index
        seen = episode.seen(shown, config) if shown >= 0 else None
        patch = episode.patch(index, config.reduction) if shape.n_3d else None
        key = DecisionKey(seed, episode.info.uid, step)
        decision, memory = config.method.decide(seen, memory, config.pruner, key, shape, patch=patch)
        decisions.append(keep_everything(shape) if config.observe.refreshes(step) else decision)
    return decisions
