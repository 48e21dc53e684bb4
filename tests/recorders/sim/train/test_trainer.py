"""What one training step does to the weights, and what it refuses."""

import math
from dataclasses import replace

import pytest
import torch

from recorders.sim.train.batches import Frames
from recorders.sim.train.losses import WEIGHTS
from recorders.sim.train.trainer import Trainer
from tests.recorders.sim.train.test_run import tiny
from tracekit.errors import PolicyError


@pytest.fixture
def trainer(demonstrations, plan):
    return Trainer(
        tiny(trained=True), Frames(demonstrations, plan.demonstrations), replace(plan, steps=4, learning_rate=0.1)
    )


def test_the_average_follows_the_weights_slowly(trainer):
    steps, before = trainer.run(), [p.detach().clone() for p in trainer.policy.parameters()]
    next(steps)
    for old, new, slow in zip(before, trainer.policy.parameters(), trainer.average.parameters(), strict=True):
        torch.testing.assert_close(slow, old + (1 - 2 / 11) * (new - old))
    moved = [not torch.equal(a, b) for a, b in zip(before, trainer.policy.parameters(), strict=True)]
    assert any(moved)


def test_the_learning_rate_warms_up_and_falls_along_a_cosine(trainer):
    rates = [losses["learning_rate"] for losses in trainer.run()]
    peak = trainer.plan.learning_rate
    assert rates == pytest.approx([peak * (s + 1) / 200 * 0.5 * (1 + math.cos(math.pi * s / 4)) for s in range(4)])
    assert trainer.optimiser.param_groups[0]["lr"] == rates[-1]


def test_auxiliary_losses_pull_with_their_weights(trainer, monkeypatch):
    """Without weight decay on biases, a head whose losses weigh nothing keeps its bias."""
    biases = [head.fc2.bias for head in (trainer.heads.landmarks, trainer.heads.clean_action)]
    kept, pulled = (bias.detach().clone() for bias in biases)
    monkeypatch.setitem(WEIGHTS, "landmarks", 0.0)
    next(trainer.run())
    assert torch.equal(biases[0], kept)
    assert not torch.equal(biases[1], pulled)


def test_a_loss_that_is_not_finite_stops_before_it_spoils_a_weight(trainer):
    with torch.no_grad():
        trainer.policy.get_parameter("llm_backbone.llm.model.norm.weight").fill_(torch.nan)
    before = {name: value.clone() for name, value in trainer.policy.state_dict().items()}
    with pytest.raises(PolicyError, match=r"training step 1: .*noise.* not finite; start from sound weights"):
        next(trainer.run())
    assert trainer.step == 0
    for name, value in trainer.policy.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)
