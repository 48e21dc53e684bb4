"""The trainer's batched forward pass computes what the engine's control step computes."""

import numpy as np
import pytest
import torch

from recorders.sim.environment import VIEW
from recorders.sim.sensor import FRONT
from recorders.sim.train import batches
from recorders.sim.train.batches import Frames, make_batch
from recorders.sim.train.forward import draw_noise, forward_batch
from recorders.sim.train.losses import AuxiliaryHeads, auxiliary_losses, noise_loss
from tests.small import make_policy
from tracekit.model.diffusion import add_noise
from tracekit.model.points import group_points
from tracekit.observation import Observation


@pytest.fixture(scope="module")
def frames(demonstrations, plan):
    return Frames(demonstrations, plan.demonstrations)


@pytest.fixture(scope="module")
def trainable():
    policy = make_policy()
    policy.requires_grad_(True)
    return policy


def observed(frames, index):
    episode, frame = frames[index]
    return Observation(
        images={VIEW: episode.image(frame)},
        points=episode.points[frame],
        state=episode.state[frame],
        instruction=episode.instruction,
        cameras={VIEW: FRONT},
    )


def test_a_batch_holds_what_the_policy_would_see(frames, trainable):
    batch = make_batch(trainable, frames, [0, len(frames) - 1], np.random.default_rng(0))
    for row, index in enumerate((0, len(frames) - 1)):
        tokens = trainable.tokenize(observed(frames, index))
        torch.testing.assert_close(batch.pixels[row], tokens.inputs["image.front"], rtol=0, atol=1e-6)
        assert torch.equal(batch.proprio[row], tokens.inputs["proprio"])
        assert torch.equal(batch.text_ids[row], tokens.text_ids[:-1])
        assert torch.equal(batch.points.view(2, -1, 3)[row], tokens.inputs["points"])


def test_the_look_is_the_attention_of_the_state_row(frames, trainable):
    batch = make_batch(trainable, frames, [1], np.random.default_rng(0))
    noise = draw_noise((1, 2, *trainable.action_shape), torch.Generator().manual_seed(1))
    image, points = torch.arange(256), torch.arange(256)
    layer, seen = trainable.backbone.layers[trainable.config.layers // 2].self_attn, {}
    hooks = [
        part.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out.detach()}))
        for name, part in (("q", layer.q_proj), ("k", layer.k_proj))
    ]
    hidden = forward_batch(trainable, batch, noise, image, points)
    for hook in hooks:
        hook.remove()
    layout = trainable.layout(len(batch.text_ids[0]) - 1)
    state, width = layout.prefix_length - 1, layer.head_dim
    cos, sin = trainable.backbone.rope(torch.arange(layout.prefix_length))

    def rotated(x, position):
        half = torch.cat([-x[width // 2 :], x[: width // 2]])
        return x * cos[position] + half * sin[position]

    for head in range(3):  # four heads share two keys: 0 and 1 the first, 2 the second
        own, keys = slice(head * width, (head + 1) * width), slice(head // 2 * width, (head // 2 + 1) * width)
        query = rotated(seen["q"][0, state, own], state)
        logits = torch.stack([query @ rotated(seen["k"][0, j, keys], j) for j in range(state + 1)]) / width**0.5
        looked, places = (
            (hidden.looked[0, head], layout.image_positions)
            if head < 2
            else (hidden.looked_points[0], layout.point_positions)
        )
        torch.testing.assert_close(
            looked.detach().exp(), logits.softmax(0)[torch.from_numpy(places)], rtol=1e-5, atol=1e-8
        )


def as_the_policy_groups(cloud, sizes, k, rng):
    stages = group_points(torch.from_numpy(cloud), tuple(int(rng.integers(n)) for n in sizes), k)
    return [(stage.centres.numpy(), stage.neighbours.numpy()) for stage in stages]


def test_grouping_by_a_tree_differs_in_near_ties_alone(frames, trainable):
    sizes, k = trainable.config.fps_sizes, trainable.config.point_neighbours
    for episode, frame in (frames[0], frames[len(frames) - 1]):
        fast, exact = (
            group(episode.points[frame], sizes, k, np.random.default_rng(1))
            for group in (batches._grouped, as_the_policy_groups)
        )
        for (centres, neighbours), (wanted, sets) in zip(fast, exact, strict=True):
            np.testing.assert_array_equal(centres, wanted)
            same = [set(a) == set(b) for a, b in zip(neighbours, sets, strict=True)]
            assert np.mean(same) > 0.97


@pytest.mark.parametrize("kept", [256, 40])
def test_predicted_noise_is_that_of_the_running_policy(frames, trainable, kept, monkeypatch):
    monkeypatch.setattr(batches, "_grouped", as_the_policy_groups)
    indices = [0, 3, len(frames) - 2, len(frames) - 1]  # both tasks, with instructions of different lengths
    batch = make_batch(trainable, frames, indices, np.random.default_rng(5))
    assert len({len(ids) for ids in batch.text_ids}) > 1
    noise = draw_noise((len(indices), 3, *trainable.action_shape), torch.Generator().manual_seed(1))
    rng = np.random.default_rng(2)
    image, points = (torch.from_numpy(np.sort(rng.choice(256, kept, replace=False))) for _ in range(2))
    starts = np.random.default_rng(5)
    with torch.inference_mode():
        hidden = forward_batch(trainable, batch, noise, image, points)
        for row, index in enumerate(indices):
            tokens = trainable.tokenize(observed(frames, index))
            prefix = trainable.embed_prefix(tokens, tuple(int(starts.integers(n)) for n in tokens.fps_sizes))
            layout = tokens.layout
            keep = np.ones(layout.prefix_length, bool)
            keep[layout.visual_positions] = False
            keep[layout.image_positions[image]] = keep[layout.point_positions[points]] = True
            positions = torch.from_numpy(np.flatnonzero(keep))
            everywhere = torch.cat([positions, torch.arange(layout.prefix_length, layout.length)])
            action = layout.span("action").start - layout.prefix_length
            for draw in range(3):
                timestep = noise.timesteps[row, draw][None]
                sample = add_noise(batch.labels.action[row][None], noise.noise[row, draw][None], timestep)
                tail = trainable.tail_rows(sample, timestep)[0]
                states = trainable.forward(torch.cat([prefix.rows[positions], tail]), everywhere)
                wanted = trainable.read_noise(states[len(positions) + action :][: trainable.action_shape[0]])
                torch.testing.assert_close(hidden.predicted[row, draw], wanted, rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(hidden.final_image[row], states[1 + kept :][:kept], rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(hidden.final_points[row], states[1 : 1 + kept], rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(hidden.final_state[row], states[len(positions) - 1], rtol=1e-3, atol=1e-3)


def test_every_weight_that_acts_and_every_head_learns(frames, trainable):
    batch = make_batch(trainable, frames, [1, len(frames) - 3], np.random.default_rng(0))
    noise = draw_noise((2, 2, *trainable.action_shape), torch.Generator().manual_seed(0))
    heads = AuxiliaryHeads(trainable.config)
    everything = torch.arange(256)
    hidden = forward_batch(trainable, batch, noise, everything, everything)
    losses = auxiliary_losses(heads, hidden, batch.labels)
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    (noise_loss(hidden, noise.noise) + sum(losses.values())).backward()
    still = [name for name, p in [*trainable.named_parameters(), *heads.named_parameters()] if p.grad is None]
    assert still == ["llm_backbone.llm.lm_head.weight"]  # no action depends on it
    trainable.zero_grad(set_to_none=True)


def test_the_action_loss_alone_leaves_the_last_visual_rows_untrained(frames, trainable):
    """Why the auxiliary losses exist: the last layer's visual rows feed nothing that the action depends on."""
    batch = make_batch(trainable, frames, [0], np.random.default_rng(0))
    noise = draw_noise((1, 2, *trainable.action_shape), torch.Generator().manual_seed(0))
    everything, seen = torch.arange(256), {}
    hook = trainable.backbone.layers[-1].register_forward_hook(lambda _m, given, out: seen.update(rows=[given[0], out]))
    hidden = forward_batch(trainable, batch, noise, everything, everything)
    hook.remove()
    given, left = torch.autograd.grad(noise_loss(hidden, noise.noise), seen["rows"])
    visual = trainable.layout(len(batch.text_ids[0]) - 1).visual_positions
    assert not left[0, visual].any()
    assert given[0, visual].any(1).all()  # as keys and values they do feed it


def test_a_blind_batch_needs_no_sensor_and_reaches_no_encoder(frames, trainable):
    batch = make_batch(trainable, frames, [0, 1], np.random.default_rng(0), blind=True)
    assert batch.pixels is None
    noise = draw_noise((2, 2, *trainable.action_shape), torch.Generator().manual_seed(0))
    none = torch.zeros(0, dtype=torch.int64)
    hidden = forward_batch(trainable, batch, noise, none, none)
    losses = auxiliary_losses(AuxiliaryHeads(trainable.config), hidden, batch.labels)
    assert set(losses) == {"landmarks", "clean_action"}
    noise_loss(hidden, noise.noise).backward()
    reached = {name.split(".")[0] for name, p in trainable.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {"llm_backbone", "proprio_embedder", "x_embedder", "t_embedder", "final_layer"}
    trainable.zero_grad(set_to_none=True)


def test_timesteps_are_spread_over_the_whole_diffusion():
    drawn = draw_noise((500, 4, 1, 10), torch.Generator().manual_seed(3)).timesteps
    assert drawn.min() == 0
    assert drawn.max() == 99
    for part in range(4):
        assert drawn[:, part].min() == 25 * part
        assert drawn[:, part].max() == 25 * part + 24
