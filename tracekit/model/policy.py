"""The MLA policy: modules named as in the release's checkpoints, behind the toolkit's Policy protocol.

Sequence: BOS, point tokens, image tokens view after view, one all-zero tactile row, text, proprio | timestep, noisy
action, tail. Attention is causal and nothing left of the bar depends on the denoise pass, so the prefix can be kept.
Everything here is differentiable; switching gradients off is the caller's business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tracekit.actions import ActionSpec
from tracekit.camera import Camera
from tracekit.errors import PolicyError
from tracekit.layout import PATCHES_PER_VIEW, PatchAlignment, TokenLayout
from tracekit.model._digest import config_digest, weights_digest
from tracekit.model.backbone import Backbone, CausalLM, KVCache
from tracekit.model.cameras import CAMERAS
from tracekit.model.config import MLAConfig
from tracekit.model.diffusion import alphas, ddim_step, ddim_timesteps
from tracekit.model.embedders import ActionHead, NumberEmbedder, TimestepEmbedder
from tracekit.model.image import ImagePosition, ImageProjector, ImageTower, pixels_of
from tracekit.model.layers import Linear, projections
from tracekit.model.points import PointProjector, PointTower, group_points
from tracekit.model.text import TextTokenizer
from tracekit.observation import Observation
from tracekit.policy import Cache, PolicyIdentity, Precision, Prefix, Tokens

__all__ = ["MLA", "MLATokens"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class MLATokens(Tokens):
    """An observation made ready. `cameras`: one per view, None where the view has no camera model.

    `inputs`: `points` (N, 3) float32 metres, `proprio` (A,) float32 normalised, `image.<view>` (3, 672, 672) float32.
    """

    cameras: tuple[Camera | None, ...]


class _LanguageModel(nn.Module):
    def __init__(self, llm: CausalLM) -> None:
        super().__init__()
        self.llm = llm


class MLA(nn.Module):
    """An MLA policy; satisfies `tracekit.policy.Policy`.

    Freshly made weights are uninitialised: load a state dict, or call `tracekit.model.initialise`. `trained` is part of
    the identity and says whether results mean anything about tasks.
    """

    def __init__(self, config: MLAConfig, tokenizer: TextTokenizer, *, trained: bool = False) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.config = config
        self.tokenizer = tokenizer
        self.trained = trained
        self.precision = Precision()
        self.vision_tower_2d = ImageTower(config.image_width, config.image_heads)
        self.projector_2d = ImageProjector(config.image_width, hidden)
        self.vision_tower_3d = PointTower(config.point_width, config.point_blocks, config.point_outputs)
        self.projector_3d = PointProjector(config.point_outputs, hidden)
        self.proprio_embedder = NumberEmbedder(config.action_size, hidden)
        self.x_embedder = NumberEmbedder(config.action_size, hidden)
        self.t_embedder = TimestepEmbedder(hidden)
        self.final_layer = ActionHead(hidden, config.action_size)
        self.image_position = ImagePosition(hidden) if config.image_position else None
        decoder = Backbone(
            vocabulary=config.vocab_size,
            hidden=hidden,
            layers=config.layers,
            heads=config.heads,
            kv_heads=config.kv_heads,
            intermediate=config.intermediate_size,
            eps=config.rms_norm_eps,
            rope_theta=config.rope_theta,
        )
        self.llm_backbone = _LanguageModel(CausalLM(decoder, config.vocab_size, hidden))
        self._timesteps = ddim_timesteps(config.ddim_steps)
        self._digest: str | None = None
        self._constant_rows: dict[int, tuple[Tensor, Tensor]] = {}
        self.eval()

    def freeze(self, precision: Precision) -> MLA:
        """Make the policy ready for inference: fix its identity, move it, and cast the projections to the precision.

        The weights digest is that of the float32 weights, whatever the precision they are run in.
        """
        if precision.dtype not in DTYPES:
            raise PolicyError(f"precision {precision.dtype!r}: not one of {', '.join(DTYPES)}; choose one of them")
        self._digest = weights_digest(self.state_dict())
        return self.cast(precision)

    def cast(self, precision: Precision) -> MLA:
        """Move the policy, cast its projections, and pack those of the decoder; its identity is left open."""
        self._constant_rows.clear()
        self.precision = precision
        self.requires_grad_(False)
        for module in projections(self):
            module.to(DTYPES[precision.dtype])
        self.to(precision.device)
        for module in self.backbone.layers.modules():
            if isinstance(module, Linear):
                module.pack()
        return self

    @property
    def identity(self) -> PolicyIdentity:
        """Name and digests that results are filed under; the weights' digest is of the moment until `freeze`."""
        return PolicyIdentity(
            name=self.config.name,
            config_digest=config_digest(self.config),
            weights_digest=self._digest or weights_digest(self.state_dict()),
            parameters=sum(p.numel() for p in self.parameters()),
            trained=self.trained,
        )

    @property
    def action_spec(self) -> ActionSpec:
        """Meaning of the actions and of the state."""
        return self.config.action_spec

    @property
    def passes(self) -> int:
        """Denoise passes per action."""
        return self.config.ddim_steps

    @property
    def timesteps(self) -> tuple[int, ...]:
        """Diffusion step of every denoise pass, noisiest first."""
        return self._timesteps

    @property
    def action_shape(self) -> tuple[int, int]:
        """(T, A)."""
        return self.config.action_window, self.config.action_size

    @property
    def backbone(self) -> Backbone:
        """The decoder: `embed_tokens`, `layers`, `norm`."""
        return self.llm_backbone.llm.model

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.backbone.embed_tokens.weight.device

    def layout(self, text_tokens: int) -> TokenLayout:
        """The sequence with `text_tokens` text ids (BOS and tail not counted)."""
        views = ((f"image.{view}", PATCHES_PER_VIEW) for view in self.config.views)
        tactile = (("tactile", 1),) if self.config.tactile_token else ()
        return TokenLayout.of_lengths(
            ("bos", 1),
            ("point", self.config.point_tokens),
            *views,
            *tactile,
            ("text", text_tokens),
            ("proprio", 1),
            ("timestep", 1),
            ("action", self.config.action_window),
            ("tail", 1),
        )

    def tokenize(self, observation: Observation) -> MLATokens:
        """Make an observation ready; raises PolicyError (one line) on a wrong shape or a missing modality."""
        ids = self.tokenizer.encode(observation.instruction)
        text = len(ids) - 1
        if not 1 <= text <= self.config.max_text:
            raise PolicyError(
                f"instruction {observation.instruction!r} has {text} tokens with its prompt, policy "
                f"{self.config.name!r} takes 1 to {self.config.max_text}; shorten it"
            )
        if max(ids) >= self.config.vocab_size or min(ids) < 0:
            raise PolicyError(
                f"instruction {observation.instruction!r}: token id {max(ids)} is outside the vocabulary of "
                f"{self.config.vocab_size}; the tokenizer belongs to another checkpoint"
            )
        inputs = {
            # Copied, not wrapped: BLAS rounds by the address, and NumPy's addresses vary from run to run.
            "points": torch.tensor(self._checked_points(observation.points)),
            "proprio": torch.tensor(self._normalised_state(observation.state)),
        }
        for view in self.config.views:
            inputs[f"image.{view}"] = pixels_of(_checked_image(observation.images, view))
        built_in = {view: CAMERAS[name] for view, name in self.config.cameras.items()}
        cameras = {**built_in, **observation.cameras}
        return MLATokens(
            layout=self.layout(text),
            text_ids=torch.tensor([*ids, self.tokenizer.tail_id]),
            fps_sizes=self.config.fps_sizes,
            inputs=inputs,
            cameras=tuple(cameras.get(view) for view in self.config.views),
        )

    def embed_prefix(self, tokens: Tokens, fps_starts: tuple[int, ...]) -> Prefix:
        """Run the encoders with the given FPS start indices and lay the prefix rows out."""
        if not isinstance(tokens, MLATokens):
            raise PolicyError(f"policy {self.config.name!r} was given tokens of another policy; tokenize with this one")
        if len(fps_starts) != len(tokens.fps_sizes) or any(
            not 0 <= start < size for start, size in zip(fps_starts, tokens.fps_sizes, strict=True)
        ):
            raise PolicyError(f"FPS starts {fps_starts}: need one index below each of {tokens.fps_sizes}")
        points = tokens.inputs["points"]
        stages = group_points(points, fps_starts, self.config.point_neighbours, DTYPES[self.precision.dtype])
        stages = tuple(
            replace(s, centres=s.centres.to(self.device), neighbours=s.neighbours.to(self.device)) for s in stages
        )
        described, centres = self.vision_tower_3d(points.to(self.device), stages)
        pixels = torch.stack([tokens.inputs[f"image.{view}"] for view in self.config.views])
        rows = self.prefix_rows(
            self.projector_3d(described),
            self.image_tokens(pixels.to(self.device)),
            tokens.text_ids[:-1].to(self.device),
            tokens.inputs["proprio"].to(self.device),
        )
        centres = centres.detach()
        cameras = {view: camera for view, camera in enumerate(tokens.cameras) if camera is not None}
        return Prefix(rows, centres, _alignment(centres.cpu().numpy(), cameras), cameras)

    def image_tokens(self, pixels: Tensor) -> Tensor:
        """(V, 3, 672, 672) pixels of V views -> (V, 256, D) image tokens."""
        tokens: Tensor = self.projector_2d(self.vision_tower_2d(pixels))
        return tokens if self.image_position is None else tokens + self.image_position()

    def prefix_rows(self, point_tokens: Tensor, image_tokens: Tensor, text_ids: Tensor, proprio: Tensor) -> Tensor:
        """(prefix length, D) float32 rows of one sample.

        `point_tokens` (N_3D, D), `image_tokens` (V, 256, D), `text_ids` (n,) int64 with BOS and without tail,
        `proprio` (A,) float32 normalised.
        """
        text = self.backbone.embed_tokens(text_ids)
        state = self.proprio_embedder(self._rounded(proprio)[None])
        tactile = text.new_zeros(int(self.config.tactile_token), text.shape[-1])
        parts = (text[:1], point_tokens, image_tokens.flatten(0, 1), tactile, text[1:], state)
        return torch.cat([part.float() for part in parts])

    def embed_tail(self, sample: Tensor, step: int) -> Tensor:
        """Rows of the tail, (1 + T + 1, D), for noisy action `sample` (T, A) in pass `step` (0-based)."""
        if sample.shape != self.action_shape:
            raise PolicyError(
                f"noisy action has shape {tuple(sample.shape)}, the policy's is {self.action_shape}; pass that"
            )
        action = self.x_embedder(self._rounded(sample.to(self.device).clone()[None]))[0]
        timestep, tail = self._constant_tail(step)
        return torch.cat([timestep, action.float(), tail])

    def _constant_tail(self, step: int) -> tuple[Tensor, Tensor]:
        """(1, D) float32 rows of the timestep of pass `step` and of the tail token: kept once the weights are fixed."""
        if step in self._constant_rows:
            return self._constant_rows[step]
        timestep = self.t_embedder(torch.tensor([self._timesteps[step]], device=self.device)).float()
        tail = self.backbone.embed_tokens(torch.tensor([self.tokenizer.tail_id], device=self.device)).float()
        if not any(parameter.requires_grad for parameter in self.t_embedder.parameters()):
            self._constant_rows[step] = timestep, tail
        return timestep, tail

    def tail_rows(self, samples: Tensor, timesteps: Tensor) -> Tensor:
        """(B, 1 + T + 1, D) float32 rows for noisy actions `samples` (B, T, A) at diffusion steps `timesteps` (B,)."""
        timestep = self.t_embedder(timesteps)[:, None]
        action = self.x_embedder(self._rounded(samples))
        tail = self.backbone.embed_tokens(torch.tensor([self.tokenizer.tail_id], device=samples.device))
        return torch.cat([timestep.float(), action.float(), tail.expand(len(samples), 1, -1)], 1)

    def new_cache(self, capacity: int) -> KVCache:
        """An empty cache with room for `capacity` rows."""
        head_dim = self.config.hidden_size // self.config.heads
        return KVCache(self.config.layers, self.config.kv_heads, capacity, head_dim, self.backbone.dtype, self.device)

    def forward(
        self,
        rows: Tensor,
        positions: Tensor,
        cache: Cache | None = None,
        *,
        visible: Tensor | None = None,
        blocks: slice | None = None,
    ) -> Tensor:
        """Final hidden states (n, D) of `rows` (n, D) at RoPE `positions` (n,) int64, causal in row order.

        With a cache, `rows` come after the rows it holds and are added to it. `visible` and `blocks` as in
        `tracekit.policy.Policy.forward`.
        """
        held = cast("KVCache | None", cache)
        hidden: Tensor = self.backbone(rows, positions.to(rows.device), held, visible, blocks)
        return hidden

    def forward_together(
        self, rows: Sequence[Tensor], positions: Sequence[Tensor], caches: Sequence[Cache | None]
    ) -> list[Tensor]:
        """`forward` for several control steps at once; see `tracekit.policy.Together`."""
        places = [where.to(one.device) for where, one in zip(positions, rows, strict=True)]
        return self.backbone.together(rows, places, cast("Sequence[KVCache | None]", caches))

    def read_noise(self, hidden: Tensor) -> Tensor:
        """Predicted noise (T, A) float32 from the final hidden states (T, D) of the action rows."""
        noise: Tensor = self.final_layer(hidden)
        return noise.float()

    def advance(self, sample: Tensor, noise: Tensor, step: int) -> Tensor:
        """The next sample (T, A) after pass `step` by DDIM; after the last pass, the unclipped action."""
        table = alphas()
        last = step == self.passes - 1
        following = 1.0 if last else float(table[self._timesteps[step + 1]])
        return ddim_step(sample.to(noise.device), noise, float(table[self._timesteps[step]]), following)

    def read_out(self, sample: Tensor) -> Tensor:
        """The action to execute, (T, A) float64: clipped to ±1, gripper 0 or 1 by the threshold, un-normalised."""
        normalised = sample.detach().cpu().numpy().astype(np.float64).clip(-1, 1)
        normalised[:, -1] = np.where(normalised[:, -1] < self.config.action_spec.gripper_threshold, 0.0, 1.0)
        return torch.from_numpy(self.config.action.restore(normalised))

    def _rounded(self, numbers: Tensor) -> Tensor:
        """State and noisy action as the release feeds them: through bfloat16 (in its own precision only).

        The diffusion step goes through the same cast there, but integers below 257 survive it.
        """
        return numbers.bfloat16() if self.precision.dtype == "bfloat16" else numbers

    def _checked_points(self, points: npt.NDArray[np.float32] | None) -> npt.NDArray[np.float32]:
        expected = (self.config.points, 3)
        if points is None:
            raise PolicyError(f"policy {self.config.name!r} needs a point cloud {expected}; the observation has none")
        cloud = np.ascontiguousarray(points, np.float32)
        if cloud.shape != expected:
            hint = "; pass x, y, z only" if cloud.ndim == 2 and cloud.shape[1] != 3 else "; resample the cloud"
            raise PolicyError(
                f"point cloud has shape {cloud.shape}, policy {self.config.name!r} takes {expected}{hint}"
            )
        if not np.isfinite(cloud).all():
            raise PolicyError("point cloud holds NaN or Inf; drop such points before sampling the cloud")
        return cloud

    def _normalised_state(self, state: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        values = np.asarray(state, np.float64)
        if values.shape != (self.config.action_size,) or not np.isfinite(values).all():
            raise PolicyError(
                f"state has shape {values.shape}, policy {self.config.name!r} takes ({self.config.action_size},) "
                f"finite numbers: {', '.join(self.config.action_spec.names)}"
            )
        return self.config.state.normalise(values).astype(np.float32)


def _alignment(centres: npt.NDArray[Any], cameras: Mapping[int, Camera]) -> PatchAlignment:
    """Patch of every point token: that of the first view, front first, whose camera sees its centre."""
    patch = np.full(len(centres), -1, np.int32)
    for view, camera in cameras.items():
        seen = camera.patches(centres)
        patch = np.where((patch < 0) & (seen >= 0), seen + view * PATCHES_PER_VIEW, patch)
    return PatchAlignment(patch.astype(np.int32))


def _checked_image(images: Mapping[str, npt.NDArray[np.uint8]], view: str) -> npt.NDArray[np.uint8]:
    if view not in images:
        raise PolicyError(f"the observation has no image of view {view!r}; it has: {', '.join(images) or 'none'}")
    image = np.asarray(images[view])
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise PolicyError(f"image {view!r} is {image.dtype} of shape {image.shape}; pass (height, width, 3) uint8 RGB")
    return np.ascontiguousarray(image)
