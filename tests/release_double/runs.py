"""Runs of the stand-in for the release: inputs, a recorded episode, and what attaching could leave behind."""

import numpy as np

import recorders
from tracekit.observation import Observation


def make_inputs(seed=0):
    random = np.random.default_rng(seed)
    return {
        "image": random.integers(0, 256, (224, 224, 3), dtype=np.uint8),
        "pointcloud": random.uniform((-0.5, -0.5, 0.8), (0.9, 0.5, 1.8), (1024, 3)).astype(np.float32),
        "instruction": "close box",
        "cur_robot_state": random.uniform(-0.4, 0.4, 7),
    }


def observation_of(inputs):
    images = {"front": inputs["image"]}
    return Observation(images, inputs["pointcloud"], inputs["cur_robot_state"], inputs["instruction"])


def record(mla, policy, path, seeds=(0, 1), **options):
    """A trace of one episode whose steps see `make_inputs(seed)`; returns the actions."""
    actions = []
    with (
        recorders.attach(mla, path, action_spec=policy.action_spec, **options) as recorder,
        recorder.episode("close_box", "close box", seed=1, uid=5, episode_id="only") as episode,
    ):
        for seed in seeds:
            inputs = make_inputs(seed)
            with episode.step(observation_of(inputs)) as step:
                step.action = mla.predict_action_diff(**inputs)
            actions.append(step.action)
    return actions


def fingerprint(mla):
    """Everything that attaching could leave behind: hooks and the namespaces of all objects.

    transformers itself leaves a `forward` on the layers whose outputs it collects.
    """
    found = {}
    for path, module in [("", mla), *mla.named_modules()]:
        hooks = [len(v) for k, v in sorted(vars(module).items()) if "hooks" in k and hasattr(v, "__len__")]
        found[path] = ({*vars(module)} - ({"forward"} if ".layers." in path else set()), hooks)
    return found
