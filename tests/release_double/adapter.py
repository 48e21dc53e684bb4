"""The stand-in behind the toolkit's policy protocol: every number comes from its own modules, called as it calls them.

This is what a user writes to replay a policy of theirs. One thing is bent: the stand-in reads noise from all rows and
takes the action's afterwards, and products round by their number of rows; so `forward` ends with its head.
"""

import numpy as np
import torch
from torch import nn

from recorders.attach_passes import patches_of
from tests.release_double import encoders
from tests.release_double.double import preprocess, scaled
from tracekit.layout import PatchAlignment, TokenLayout
from tracekit.model.diffusion import alphas, ddim_step, ddim_timesteps
from tracekit.policy import Prefix, Tokens


class DoublePolicy(nn.Module):
    """`double`: a ReleaseDouble. `identity` and `action_spec`: of the policy whose weights it carries."""

    def __init__(self, double, identity, action_spec):
        super().__init__()
        self.theirs, self.identity, self.action_spec = double, identity, action_spec
        self.passes = double.config.ddim_steps
        self.action_shape = (double.config.action_window, double.config.action_size)
        self.steps = ddim_timesteps(self.passes)

    @property
    def backbone(self):
        return self.theirs.vlm.llm_backbone.llm.model

    def tokenize(self, observation):
        ids = torch.tensor([self.theirs.ids[observation.instruction.lower()]])
        layout = TokenLayout.of_lengths(
            ("bos", 1),
            ("point", 256),
            ("image.front", 256),
            ("tactile", 1),
            ("text", ids.shape[1] - 2),
            ("proprio", 1),
            ("timestep", 1),
            ("action", self.action_shape[0]),
            ("tail", 1),
        )
        state = scaled(self.theirs.config.state, observation.state)
        inputs = {
            "images": preprocess(observation.images["front"])[None],
            "points": torch.from_numpy(observation.points)[None],
            "proprio": torch.tensor(state, dtype=torch.float32)[None, None],
            "ids": ids,
        }
        sizes = self.theirs.config.fps_sizes
        return Tokens(layout, ids[0], sizes, inputs)

    def embed_prefix(self, tokens, fps_starts):
        vlm, given, starts = self.theirs.vlm, tokens.inputs, iter(fps_starts)
        drawn, encoders.start_index = encoders.start_index, lambda _count: next(starts)
        centres = []
        handle = vlm.vision_tower_3d.register_forward_hook(lambda _module, _inputs, output: centres.append(output[1]))
        try:
            fused, indices, valid, *_ = vlm.get_fused_tokens(given["images"], given["points"])
        finally:
            encoders.start_index = drawn
            handle.remove()
        words = vlm.llm_backbone.embed_input_ids(given["ids"])
        z = torch.cat([words[:, :1], fused, words[:, 1:]], 1)
        place = int(torch.where(given["ids"][0] == vlm.tail_id)[0][-1]) + fused.shape[1]
        rows = torch.cat([z[0, :place], vlm.proprio_embedder(given["proprio"])[0]])
        return Prefix(rows, centres[0][0], PatchAlignment(patches_of(indices, valid)))

    def embed_tail(self, sample, step):
        vlm = self.theirs.vlm
        timestep = vlm.t_embedder(torch.tensor([self.steps[step]])).unsqueeze(1)
        tail = vlm.llm_backbone.embed_input_ids(torch.tensor([[vlm.tail_id]]))
        return torch.cat([timestep[0], vlm.x_embedder(sample[None])[0], tail[0]])

    def new_cache(self, capacity):
        raise NotImplementedError("the stand-in recomputes everything in every pass")

    def forward(self, rows, positions, cache=None):
        gaps = len(positions) != int(positions[-1]) + 1
        output = self.theirs.vlm.llm_backbone.llm(
            inputs_embeds=rows[None],
            position_ids=positions[None] if gaps else None,
            attention_mask=torch.ones(1, len(rows), dtype=torch.long) if gaps else None,
            use_cache=self.theirs.vlm.use_cache,
            output_hidden_states=True,
        )
        return self.theirs.vlm.final_layer(output.hidden_states[-1])[0]

    def read_noise(self, hidden):
        return hidden

    def advance(self, sample, noise, step):
        following = self.steps[step + 1] if step + 1 < self.passes else None
        later = 1.0 if following is None else float(alphas()[following])
        return ddim_step(sample, noise, float(alphas()[self.steps[step]]), later)

    def read_out(self, sample):
        return torch.from_numpy(self.theirs.restored(sample.numpy().astype(np.float64)))
