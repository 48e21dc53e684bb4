"""What the tests of the engine share: observations, the steps of a controller on them, and the step written out."""

import hashlib

import numpy as np
import torch

from recorders.sim import Environment
from tests.eager import eager_forward
from tracekit.engine import Controller

UID = 11


def first_observations(count):
    """The first `count` observations of an episode in which the arm moves forward and down."""
    environment = Environment("close_box")
    first = environment.reset(7)
    action = np.r_[0.05, 0, -0.05, first.state[3:9], 0.0]
    return [first, *(environment.step(action).observation for _ in range(count - 1))]


def run(policy, config, observations, uid=UID, options=None):
    """The results of the steps of one episode."""
    controller = Controller(policy, config, options)
    controller.reset(uid)
    return [controller.step(observation) for observation in observations]


def digest_of(results):
    """SHA-256 over samples and kept tokens."""
    total = hashlib.sha256()
    for result in results:
        total.update(result.samples.tobytes() + result.kept.tobytes())
    return total.hexdigest()


@torch.inference_mode()
def literal_step(policy, observation, draws, *, kept=None, pinned=False, behind=-1, cut_cache=False):
    """(passes, T, A) samples. `kept` (passes, length) bool: rows that are there; the others are masked as keys.

    `behind`: in the layers after this one only. `cut_cache`: for the tail only, the prefix has seen all of itself.
    """
    tokens = policy.tokenize(observation)
    layout, samples = tokens.layout, []
    action = layout.span("action")
    sample = torch.from_numpy(draws.noise)
    for step in range(policy.passes):
        starts = draws.fps_starts[0 if pinned else step]
        prefix = policy.embed_prefix(tokens, tuple(int(start) for start in starts))
        rows = torch.cat([prefix.rows, policy.embed_tail(sample, step)])
        positions = torch.arange(layout.length)
        if kept is None:
            hidden = policy.forward(rows, positions)
        else:
            first = layout.prefix_length if cut_cache else 0
            keys = torch.from_numpy(kept[step])
            hidden = eager_forward(policy.backbone, rows, positions, keys, behind=behind, first=first).hidden
        noise = policy.read_noise(hidden[action.start : action.stop])
        sample = policy.advance(sample, noise, step)
        samples.append(sample.numpy())
    return np.stack(samples)


def full_masks(result):
    """(passes, length) bool from the visual tokens that a result kept."""
    masks = np.ones((len(result.kept), result.layout.length), bool)
    masks[:, result.layout.visual_positions] = result.kept
    return masks


def relative(ours, theirs):
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
