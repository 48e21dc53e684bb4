"""A policy small enough to run hundreds of steps in a test, and traces recorded with the simulator.

It has every part of the reference policy, grouped queries and a chunk of two actions, and takes the simulator's
observations.
"""

from dataclasses import replace
from pathlib import Path

import torch

from recorders import Recorder
from recorders.sim import Environment, Expert, episode_uid
from recorders.sim.environment import VIEW
from tracekit.config import Configuration
from tracekit.engine import Controller, StepDraws, draw
from tracekit.model import MLA, REFERENCE_WORDS, WordTokenizer, initialise, reference
from tracekit.policy import Precision, register_policy

WIDTHS = {
    "name": "small",
    "hidden_size": 32,
    "layers": 2,
    "heads": 4,
    "kv_heads": 2,
    "intermediate_size": 48,
    "image_width": 8,
    "image_heads": 4,
    "point_width": 6,
    "point_neighbours": 8,
    "point_outputs": 24,
    "action_window": 2,
    "ddim_steps": 3,
}


def make_policy(seed: int = 1, dtype: str = "float32", **changes) -> MLA:
    config = replace(reference(), **{**WIDTHS, **changes})
    return initialise(MLA(config, WordTokenizer(REFERENCE_WORDS)), seed).freeze(Precision(dtype=dtype))


register_policy("small", lambda precision: make_policy(dtype=precision.dtype))


def make_config(kind: str = "none", reuse: str = "none", fps: str | None = None, **pruner) -> Configuration:
    """A configuration of one thread; `name` (a keyword of the file, not of the pruner) is the kind by default."""
    table = {
        "name": pruner.pop("name", kind),
        "pruner": {"kind": kind, **pruner},
        "reuse": {"kind": reuse, "fps": fps or ("recorded" if reuse == "none" else "pinned")},
        "execution": {"threads": 1},
    }
    return Configuration.from_table(table, "make_config")


def make_draws(policy: MLA, observation, uid: int = 11, step: int = 1) -> StepDraws:
    with torch.inference_mode():
        return draw(policy, policy.tokenize(observation), uid, step)


def record_trace(path: Path, policy: MLA, episodes: tuple[tuple[str, int, int], ...], **recorder) -> Path:
    """Record each (task, seed, number of steps): the expert drives, `policy` is recorded beside it."""
    controller = Controller(policy, make_config())
    with Recorder(path, controller, driver="expert", **recorder) as recording:
        for task, seed, steps in episodes:
            environment = Environment(task)
            observation, expert = environment.reset(seed), Expert(environment)
            with recording.episode(
                task,
                environment.instruction,
                seed=seed,
                uid=episode_uid(task, seed),
                cameras={VIEW: environment.camera},
            ) as episode:
                for _ in range(steps):
                    with episode.step(observation, environment.phase) as step:
                        controller.act(observation)
                        step.action = expert.act()
                    observation = environment.step(step.action).observation
    return path
