"""A stand-in for the public release: its module tree, call order and random draws around Hugging Face's LLaMA.

It is written against the description of the release, shares no code with `tracekit.model`, and loads the same weights.
"""

import itertools
import math

import numpy as np
import torch
import transformers
from PIL import Image
from torch import nn

from tests.release_double.encoders import (
    Embedder,
    FinalLayer,
    ImageTower,
    PointTower,
    Projector,
    TimestepEmbedder,
)


def initial_noise(*shape):
    return torch.randn(*shape)


class LLMBackbone(nn.Module):
    def __init__(self, config, attention):
        super().__init__()
        llama = transformers.LlamaConfig(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            vocab_size=config.vocab_size,
            rms_norm_eps=config.rms_norm_eps,
            rope_theta=config.rope_theta,
            max_position_embeddings=2048,
            attn_implementation=attention,
        )
        self.llm = transformers.LlamaForCausalLM(llama)

    def embed_input_ids(self, ids):
        return self.llm.get_input_embeddings()(ids)

    def forward(self, *, inputs_embeds, pc_token_indices, use_cache=None, compute_token_contrastive_loss=False, **_):
        if compute_token_contrastive_loss and inputs_embeds.shape[1] <= pc_token_indices[1]:
            raise AssertionError("the contrastive loss would address rows that are gone")
        return self.llm(
            inputs_embeds=inputs_embeds,
            attention_mask=None,
            position_ids=None,
            use_cache=use_cache,
            output_hidden_states=True,
        )


class VLM(nn.Module):
    def __init__(self, config, tail_id, attention):
        super().__init__()
        hidden = config.hidden_size
        self.config, self.tail_id, self.use_cache = config, tail_id, None
        self.vision_tower_2d = ImageTower(config)
        self.vision_tower_3d = PointTower(config)
        self.projector_2d = Projector("mlp", config.image_width, hidden)
        self.projector_3d = Projector("projector", config.point_outputs, hidden)
        self.llm_backbone = LLMBackbone(config, attention)
        self.proprio_embedder = Embedder(config.action_size, hidden)
        self.x_embedder = Embedder(config.action_size, hidden)
        self.t_embedder = TimestepEmbedder(hidden)
        self.final_layer = FinalLayer(hidden, config.action_size)

    def encode_images(self, images):
        return [self.projector_2d(self.vision_tower_2d(image[None])) for image in images]

    def get_fused_tokens(self, images, pointcloud):
        image_tokens = torch.stack(self.encode_images(images))
        described, centres = self.vision_tower_3d(pointcloud)
        point_tokens = self.projector_3d(described)
        indices, valid = project(centres)
        tactile = torch.zeros(1, 1, image_tokens.shape[-1])
        return torch.cat([point_tokens, image_tokens, tactile], 1), indices, valid, None, None, None

    def forward(self, x=None, t=None, z=None, proprio=None, input_ids=None, images=None, point_cloud=None, **_):
        fused, indices, valid, *_rest = self.get_fused_tokens(images, point_cloud)
        words = self.llm_backbone.embed_input_ids(input_ids)
        z = torch.cat([words[:, :1], fused, words[:, 1:]], 1)
        proprio, x, t = self.proprio_embedder(proprio), self.x_embedder(x), self.t_embedder(t).unsqueeze(1)
        place = int(torch.where(input_ids[0] == self.tail_id)[0][-1]) + fused.shape[1]
        rows = torch.cat([z[0, :place], proprio[0], t[0], x[0], z[0, place:]])[None]
        output = self.llm_backbone(
            inputs_embeds=rows,
            use_cache=self.use_cache,
            pc_token_indices=(1, 257),
            patch_correspondence_indices=indices,
            correspondence_valid_mask=valid,
            compute_token_contrastive_loss=True,
        )
        noise = self.final_layer(output.hidden_states[-1])
        return output, noise[:, place + 2 : place + 2 + x.shape[1]]


class ReleaseDouble(nn.Module):
    """`mla`. `ids`: instruction -> token ids, BOS first, tail last."""

    def __init__(self, config, ids, attention="sdpa"):
        super().__init__()
        self.ids, self.config, self.unclipped = ids, config, None
        self.vlm = VLM(config, next(iter(ids.values()))[-1], attention)
        self.eval()

    @torch.inference_mode()
    def predict_action_diff(self, image=None, pointcloud=None, instruction=None, cur_robot_state=None):
        config = self.config
        pixels = preprocess(image)[None]
        state = scaled(config.state, cur_robot_state)
        noise = initial_noise(1, config.action_window, config.action_size)
        torch.randint(0, 100, (config.action_window,))  # the release draws a timestep that it does not use
        sample_fn = self.vlm.forward
        sample = self.denoise(
            sample_fn,
            noise,
            input_ids=torch.tensor([self.ids[instruction.lower()]]),
            images=pixels,
            point_cloud=torch.from_numpy(pointcloud)[None],
            proprio=torch.tensor(state, dtype=torch.float32)[None, None],
        )
        return self.restored(sample[0].numpy())

    def denoise(self, sample_fn, sample, **kwargs):
        bars = alpha_bars()
        stride = next(s for s in range(1, 101) if len(range(0, 100, s)) == self.config.ddim_steps)
        steps = list(range(0, 100, stride))[::-1]
        for step, following in zip(steps, [*steps[1:], None], strict=True):
            _, noise = sample_fn(sample, torch.tensor([step]), **kwargs)
            torch.randn_like(sample)  # eta is 0, so the release multiplies this by nothing
            bar, later = bars[step], 1.0 if following is None else bars[following]
            clean = math.sqrt(1 / bar) * sample - math.sqrt(1 / bar - 1) * noise
            sample = clean * math.sqrt(later) + math.sqrt(1 - later) * noise
        self.unclipped = sample[0]
        return sample

    def restored(self, actions):
        actions = np.clip(actions, -1, 1)
        actions[:, -1] = np.where(actions[:, -1] < 0.5, 0, 1)
        low, high, mask = (np.array(getattr(self.config.action, key)) for key in ("q01", "q99", "mask"))
        return np.where(mask, 0.5 * (actions + 1) * (high - low) + low, actions)


def alpha_bars():
    level = [math.cos((i / 100 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(101)]
    return np.cumprod([1 - min(1 - b / a, 0.999) for a, b in itertools.pairwise(level)])


def preprocess(image):
    """CLIP's preprocessing to 672², with the all-ones channel that the release appends."""
    pixels = np.asarray(Image.fromarray(image).resize((672, 672), Image.Resampling.BICUBIC), np.float32) / 255
    mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    pixels = torch.from_numpy((pixels - np.float32(mean)) / np.float32(deviation)).permute(2, 0, 1)
    return torch.cat([pixels, torch.ones(1, 672, 672)])


def scaled(statistics, state):
    low, high = np.array(statistics.q01), np.array(statistics.q99)
    return np.clip(np.where(statistics.mask, 2 * (state - low) / (high - low + 1e-8) - 1, state), -1, 1)


def project(centres):
    """(1, N, 2) row and column and (1, N) validity in the front camera of the release's simulator."""
    rotation = torch.tensor([[0, -0.42261794, -0.90630794], [-1, 0, 0], [0, 0.90630794, -0.42261791]])
    cam = (centres[0] - torch.tensor([1.35, 0, 1.58])) @ rotation
    u, v = ((-307.7174807 * cam[:, i] / (cam[:, 2] + 1e-6) + 112) * 3 for i in range(2))
    valid = (cam[:, 2] > 0) & (u >= 0) & (u < 672) & (v >= 0) & (v < 672)
    cells = torch.stack([v, u], -1).clamp(0, 671).div(42).floor().long()
    return cells[None], valid[None]


def double_of(policy, ids, attention="sdpa"):
    """The double with the configuration and the weights of `policy`, a `tracekit.model.MLA`."""
    double = ReleaseDouble(policy.config, ids, attention)
    state = {f"vlm.{key}": value.clone() for key, value in policy.state_dict().items()}
    # A batch norm's count of batches is in the release's files only.
    missing, unexpected = double.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing), missing
    return double.requires_grad_(False)
