"""Decisions of a run that was pruned while it was recorded, taken again from what its passes showed."""

from __future__ import annotations

from typing import Any

from replay.source import RecordedEpisode
from tracekit import keys
from tracekit.config import Configuration
from tracekit.engine import Decider, decision_shape
from tracekit.errors import TraceError
from tracekit.layout import TokenLayout
from tracekit.pruned_records import recorded_kept
from tracekit.pruning import Decision, DecisionKey

__all__ = ["decide_again"]


def decide_again(episode: RecordedEpisode, config: Configuration, pruned_by: Configuration) -> list[Decision]:
    """The decision of every step of `episode`, recorded under `pruned_by`: the bits of the live run, on any machine.

    Raises TraceError if `config` decides otherwise: other decisions would have shown other things.
    """
    ours, theirs = ({**one.to_json(), "name": "", "execution": ""} for one in (config, pruned_by))
    if ours != theirs:
        raise TraceError(
            f"episode {episode.info.id!r} was pruned by {pruned_by.name!r} while it was recorded: its passes show the "
            f"tokens that this kept, from which {config.name!r} cannot be decided; use a forward replay "
            "(`tracekit replay`), or an unpruned recording"
        )
    episode.refuse_gaps(config)
    shape = decision_shape(TokenLayout.from_json(episode.info.attributes["layout"]))
    seed = int(getattr(config.pruner, "seed", 0))
    decisions: list[Decision] = []
    memory: Any = None
    for index in range(len(episode)):
        decider = Decider(config, DecisionKey(seed, episode.info.uid, episode.number(index)), shape, memory)
        patch = episode.patch(index, config.reduction) if shape.n_3d else None
        decision = decider.before(patch)
        if decider.watches:
            kept = recorded_kept(episode.stored, index)[0]
            observed = episode.stored.read(keys.OBSERVED, index)
            decision = decider.after(episode.seen(index, config), kept, patch, decision, observed)
        memory = decider.memory
        decisions.append(decision)
    return decisions
