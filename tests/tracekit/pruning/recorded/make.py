"""Writes the recorded inputs beside this file: `python -m tests.tracekit.pruning.recorded.make TRACE`.

TRACE: `tracekit record sim --task close_box,close_laptop --episodes 1 --seed 7 --policy reference --capture baselines`.
The digests are made of these files by `python -m tests.tracekit.pruning.digests`; they change with a rule, never else.
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np

from replay.source import TraceSource
from tracekit import keys
from tracekit.pruning import Reduction, Scores
from tracekit.records import recorded_observables

HERE = Path(__file__).parent
PARTS = ("attention", "attention_action", "last_row", "mean_all_rows", "embeddings", "centres", "images")


def main(trace):
    episodes = TraceSource(trace).episodes()
    scores = {}
    for episode in episodes:
        whole = Scores.stack([episode.scores(index, Reduction()) for index in range(len(episode))])
        arrays = {field.name: getattr(whole, field.name) for field in dataclasses.fields(whole)}
        arrays |= {"uid": np.uint64(episode.info.uid), "patch": episode.stored.read(keys.POINT_PATCH)[:, 0]}
        scores |= {f"{episode.info.id}/{name}": value for name, value in arrays.items()}
    np.savez_compressed(HERE / "scores.npz", **scores)
    seen = {}
    for index in (3, 4):
        one = recorded_observables(
            episodes[0].stored, index, frozenset({*PARTS, "displacement_m"}), episodes[0]._action_spec
        )
        thin = {name: getattr(one, name) for name in (*PARTS, "patch")}
        thin |= {"attention": one.attention[:, :2], "attention_action": one.attention_action[:1]}
        thin |= {"embeddings": one.embeddings[:, :16], "displacement_m": np.float64(one.displacement_m)}
        seen |= {f"{index}/{name}": value for name, value in thin.items()}
    np.savez_compressed(HERE / "observables.npz", **seen)


if __name__ == "__main__":
    main(sys.argv[1])
