import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tracekit.model.diffusion import add_noise, alphas, ddim_step, ddim_timesteps


def test_alphas_are_the_literal_product_and_follow_the_cosine():
    product, expected = 1.0, []
    for t in range(100):
        now, following = (math.cos((x / 100 + 0.008) / 1.008 * math.pi / 2) ** 2 for x in (t, t + 1))
        product *= 1 - min(1 - following / now, 0.999)
        expected.append(product)
    np.testing.assert_allclose(alphas(), expected, rtol=1e-12)
    assert np.all(np.diff(alphas()) < 0)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (8, (91, 78, 65, 52, 39, 26, 13, 0)),
        (4, (75, 50, 25, 0)),
        (5, (80, 60, 40, 20, 0)),
        (10, (90, 80, 70, 60, 50, 40, 30, 20, 10, 0)),
        (1, (0,)),
        (16, (99, 92, 86, 79, 73, 66, 59, 53, 46, 40, 33, 26, 20, 13, 7, 0)),
    ],
)
def test_ddim_timesteps(steps, expected):
    assert ddim_timesteps(steps) == expected


@given(st.integers(1, 100))
def test_ddim_timesteps_fall_from_within_the_schedule_to_zero(steps):
    visited = ddim_timesteps(steps)
    assert len(visited) == steps
    assert visited[-1] == 0
    assert visited[0] < 100
    assert all(a > b for a, b in pairwise(visited))


def test_ddim_recovers_the_action_when_the_noise_is_known():
    generator = torch.Generator().manual_seed(0)
    action, noise = torch.randn(2, 1, 3, 7, generator=generator)
    sample = add_noise(action, noise, torch.tensor([91]))[0]
    for i, t in enumerate(ddim_timesteps(8)):
        following = 1.0 if t == 0 else float(alphas()[ddim_timesteps(8)[i + 1]])
        sample = ddim_step(sample, noise[0], float(alphas()[t]), following)
        if t:
            expected = add_noise(action, noise, torch.tensor([ddim_timesteps(8)[i + 1]]))[0]
            torch.testing.assert_close(sample, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sample, action[0], rtol=1e-4, atol=1e-4)
