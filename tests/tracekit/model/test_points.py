import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from tracekit.model.points import PointTower, _offset_code, farthest_points, group_points, nearest_points

clouds = st.integers(2, 40).flatmap(lambda n: st.lists(st.tuples(*[st.integers(-6, 6)] * 3), min_size=n, max_size=n))


def literal_farthest(points: np.ndarray, count: int, start: int) -> list[int]:
    chosen = [start]
    while len(chosen) < count:
        best, following = -1.0, 0
        for j, point in enumerate(points):
            closest = math.inf
            for i in chosen:
                d = points[i] - point
                closest = min(closest, float(np.float32(np.float32(d[0] * d[0] + d[1] * d[1]) + d[2] * d[2])))
            if closest > best:
                best, following = closest, j
        chosen.append(following)
    return chosen


@settings(deadline=None)  # the first call compiles
@given(clouds, st.data())
def test_farthest_points_takes_the_literal_choice_lowest_index_on_ties(cloud, data):
    points = np.array(cloud, np.float32)
    start = data.draw(st.integers(0, len(points) - 1))
    count = data.draw(st.integers(1, len(points)))
    assert farthest_points(torch.from_numpy(points), count, start).tolist() == literal_farthest(points, count, start)


def test_farthest_points_of_real_numbers_equals_the_literal_choice():
    points = np.random.default_rng(3).normal(size=(96, 3)).astype(np.float32)
    assert farthest_points(torch.from_numpy(points), 48, 7).tolist() == literal_farthest(points, 48, 7)


@settings(deadline=None)  # the first call compiles
@given(clouds, st.data())
def test_nearest_points_holds_the_k_smallest_distances(cloud, data):
    points = np.array(cloud, np.float32)
    k = data.draw(st.integers(1, len(points)))
    found = nearest_points(torch.from_numpy(points), torch.from_numpy(points[:2]), k).numpy()
    for centre, neighbours in zip(points[:2], found, strict=True):
        distances = ((points - centre) ** 2).sum(-1)
        assert len(set(neighbours.tolist())) == k
        assert sorted(distances[neighbours]) == sorted(distances)[:k]


def test_stages_halve_the_points_and_index_the_stage_before():
    points = torch.from_numpy(np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32))
    first, second = group_points(points, (5, 9), 8)
    assert first.centres[0] == 5
    assert second.centres[0] == 9
    assert (len(first.centres), len(second.centres)) == (32, 16)
    assert first.neighbours.shape == (32, 8)
    assert second.neighbours.max() < 32


def test_offset_code_is_axis_major_sines_then_cosines():
    offsets = torch.tensor([[[0.3, -0.7, 1.0]]])
    expected = []
    for value in (0.3, -0.7, 1.0):
        angles = [100 * value / 1000 ** (j / 4) for j in range(4)]
        expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    np.testing.assert_allclose(_offset_code(offsets, 24)[0, 0].numpy(), expected, atol=2e-5)


def channels_first(state: dict[str, torch.Tensor], points: torch.Tensor, stages, k: int) -> torch.Tensor:
    """The tower written with convolutions over (1, C, M, k), as the release lays it out."""

    def norm(x, name):
        get = [state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return functional.batch_norm(x, *get)

    p = "patch_embed.EncP"
    x = functional.conv1d(points.T[None], state[f"{p}.raw_point_embed.net.0.weight"])
    features = functional.relu(norm(x, f"{p}.raw_point_embed.net.1"))[0].T
    for i, (stage, blocks) in enumerate(zip(stages, (2, 1), strict=True)):
        described = []
        for centre, neighbours in zip(stage.centres.tolist(), stage.neighbours.tolist(), strict=True):
            offsets = torch.stack([points[n] - points[centre] for n in neighbours])
            for axis in range(3):
                offsets[:, axis] = offsets[:, axis] / max(float(offsets[:, axis].abs().max()), 1e-6)
            joined = torch.stack([torch.cat([features[n], features[centre]]) for n in neighbours])
            described.append(joined + _offset_code(offsets[None], joined.shape[-1])[0])
        x = torch.stack(described).permute(2, 0, 1)[None]
        for j in range(blocks):
            q = f"{p}.LGA_list.{i}.linear2.{j}"
            y = functional.conv2d(x, state[f"{q}.net1.0.weight"], state[f"{q}.net1.0.bias"])
            y = functional.relu(norm(y, f"{q}.net1.1"))
            y = functional.conv2d(y, state[f"{q}.net2.0.weight"], state[f"{q}.net2.0.bias"])
            x = functional.relu(x + norm(y, f"{q}.net2.1"))
        features = x.amax(-1)[0].T
        points = points[stage.centres]
    return functional.linear(features, state["proj.weight"], state["proj.bias"])


@pytest.fixture
def tower() -> PointTower:
    tower = PointTower(6, (2, 1), 20).eval()
    generator = torch.Generator().manual_seed(0)
    for name, tensor in tower.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) - (0.0 if "var" in name else 0.4))
    return tower


def test_tower_equals_its_convolutions(tower):
    points = torch.from_numpy(np.random.default_rng(1).normal(size=(64, 3)).astype(np.float32))
    stages = group_points(points, (3, 4), 8)
    with torch.no_grad():
        tokens, centres = tower(points, stages)
        expected = channels_first(tower.state_dict(), points, stages, 8)
    torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(centres, points[stages[0].centres][stages[1].centres])


def test_a_batch_is_concatenated_points_with_shifted_indices(tower):
    random = np.random.default_rng(2)
    clouds = [torch.from_numpy(random.normal(size=(64, 3)).astype(np.float32)) for _ in range(2)]
    groups = [group_points(cloud, (1, 2), 8) for cloud in clouds]
    joined = tuple(
        type(a)(torch.cat([a.centres, b.centres + n]), torch.cat([a.neighbours, b.neighbours + n]))
        for a, b, n in zip(*groups, (64, 32), strict=True)
    )
    with torch.no_grad():
        together, _ = tower(torch.cat(clouds), joined)
        apart = torch.cat([tower(cloud, group)[0] for cloud, group in zip(clouds, groups, strict=True)])
    torch.testing.assert_close(together, apart)
