"""Run directories and conformance folders as the release writes them, from a policy of any width."""

import json
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from tracekit.actions import ActionSpec
from tracekit.model import MLA, IdTable, Normalisation, initialise
from tracekit.model.backbone import rotate
from tracekit.observation import Observation
from tracekit.policy import Precision

from .conftest import tiny_config

SIDECAR = {"heads": 4, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "action_window": 3, "ddim_steps": 4}
STATISTICS = {"q01": [-0.5] * 6 + [0.0], "q99": [0.5] * 6 + [1.0], "mask": [True] * 6 + [False]}
IDS = [1, 5, 6, 7, 8, 2]

UNUSED = {
    "vision_tower_2d": {"class_embedding": (16,), "global_attention.proj.bias": (16,)},
    "vision_tower_3d": {"cls_token": (1, 1, 24), "norm.weight": (24,)},
    "llm_backbone": {"llm.tactile_contrastive_loss_module.image_projection_head.0.bias": (32,)},
    "tactile_embedder": {"mlp.fc1.weight": (32, 12)},
    "generation_manager": {"image_gen_module.mae_alpha_head.bias": (1,)},
}


def release_policy(**changes) -> MLA:
    """Small, but with the constants of the release: one front view, 1024 points in groups of 81, euler angles."""
    statistics = Normalisation(*(tuple(STATISTICS[key]) for key in ("q01", "q99", "mask")))
    fixed = {
        "action_spec": ActionSpec(frame="world", rotation_form="euler_xyz"),
        "state": statistics,
        "action": statistics,
        "points": 1024,
        "point_neighbours": 81,
        "views": ("front",),
        "cameras": {"front": "rlbench_front"},
        "max_text": 256,
        "name": "run",
    }
    return initialise(MLA(tiny_config(**{**fixed, **changes}), IdTable({"close box": IDS}, 2)), 5)


def state_dicts(policy: MLA) -> dict[str, dict[str, torch.Tensor]]:
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in policy.state_dict().items():
        module, key = name.split(".", 1)
        modules.setdefault(module, {})[key] = tensor.clone()
    for module, entries in UNUSED.items():
        modules.setdefault(module, {}).update({key: torch.zeros(shape) for key, shape in entries.items()})
    return modules


def write_run(folder: Path, model: object, sidecar: dict | None = SIDECAR, statistics: dict | None = None) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"model": model}, folder / "checkpoints" / "step-000100-epoch-01-loss=0.1000.pt")
    (folder / "config.json").write_text(json.dumps({"vla": {"base_vlm": "any"}}))
    both = {"action": STATISTICS, "proprio": STATISTICS}
    (folder / "dataset_statistics.json").write_text(json.dumps(statistics or {"rlbench": both}))
    if sidecar is not None:
        (folder / "tracekit.json").write_text(json.dumps(sidecar))
    return folder


def write_conformance(folder: Path, policy: MLA) -> Path:
    """A golden file computed by a loop of its own: plain modules, eager attention, DDIM written out."""
    write_run(folder, state_dicts(policy), sidecar=None)
    config = policy.config
    random = np.random.default_rng(4)
    golden = {
        "image": random.integers(0, 256, (224, 224, 3), dtype=np.uint8),
        "point_cloud": random.uniform((-0.5, -0.5, 0.8), (0.9, 0.5, 1.8), (1, 1024, 3)).astype(np.float32),
        "state": random.uniform(-0.4, 0.4, 7),
        "text_ids": np.array(IDS),
        "fps_start_indices": random.integers(0, 512, (config.ddim_steps, 2)),
    }
    frozen = policy.freeze(Precision())
    sample = torch.from_numpy(random.normal(size=policy.action_shape).astype(np.float32))
    observation = Observation({"front": golden["image"]}, golden["point_cloud"][0], golden["state"], "close box")
    with torch.inference_mode():
        tokens = frozen.tokenize(observation)
        kept: dict[str, list[np.ndarray]] = {}
        for step, start in enumerate(golden["fps_start_indices"].tolist()):
            prefix = frozen.embed_prefix(tokens, tuple(start))
            rows = torch.cat([prefix.rows, frozen.embed_tail(sample, step)])
            hidden, layers, prenorm, attention = eager(frozen, rows)
            noise = frozen.final_layer(hidden[-1 - config.action_window : -1])
            for name, value in (
                ("noisy_action", sample[None]),
                ("predicted_noise", noise[None]),
                ("inputs_embeds", rows),
                ("point_centres", prefix.centres),
                ("lm_head_l1", functional.linear(hidden, frozen.llm_backbone.llm.lm_head.weight).abs().sum(-1)),
            ):
                kept.setdefault(name, []).append(value.numpy())
            if step == 0:
                text = tokens.layout.span("text").start
                golden["attention_row_positions"] = np.arange(text, len(rows))
                golden["attention_rows_step0"] = attention[:, :, text:].numpy()
                golden["hidden_states_step0"] = torch.stack([*layers, hidden]).numpy()
                golden["last_layer_prenorm_step0"] = prenorm.numpy()
                patch = prefix.alignment.patch
                cell, seen = tokens.cameras[0].raster(prefix.centres.numpy())
                golden["patch_valid_step0"] = patch >= 0
                golden["patch_row_col_step0"] = np.where(
                    seen[:, None], np.stack([patch // 16, patch % 16], 1), cell
                ).astype(np.int64)
                golden["pruned_keep"] = np.ones(len(rows), bool)
                golden["pruned_keep"][5:400:2] = False
                index = torch.from_numpy(golden["pruned_keep"]).nonzero().flatten()
                for name, positions in (("original", index), ("compressed", torch.arange(len(index)))):
                    pruned = eager(frozen, rows[index], positions)[0][-1 - config.action_window : -1]
                    golden[f"pruned_predicted_noise_{name}_positions"] = frozen.final_layer(pruned)[None].numpy()
            sample = frozen.advance(sample, noise, step)
    golden |= {name: np.stack(values) for name, values in kept.items()}
    golden["denoise_timesteps"] = np.array(policy.timesteps, np.float64)
    golden["action_unclipped"] = sample[None].numpy()
    golden["action"] = frozen.read_out(sample).numpy()
    np.savez(folder / "golden.npz", **golden)
    settings = {
        "heads": config.heads,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "ddim_steps": config.ddim_steps,
        "future_action_window_size": config.action_window - 1,
        "instruction": "close box",
    }
    (folder / "golden.json").write_text(json.dumps(settings))
    return folder


def eager(policy: MLA, rows: torch.Tensor, positions: torch.Tensor | None = None):
    """(final hidden, layer inputs, pre-norm, attention maps (L, H, n, n)) by unfused attention."""
    positions = torch.arange(len(rows)) if positions is None else positions
    cos, sin = policy.backbone.rope(positions)
    layers, maps = [], []
    for layer in policy.backbone.layers:
        layers.append(rows)
        attention, x = layer.self_attn, layer.input_layernorm(rows)
        query, key, value = (
            p(x).view(len(rows), -1, attention.head_dim).transpose(0, 1)
            for p in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        groups = len(query) // len(key)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin).repeat_interleave(groups, 0)
        logits = query @ key.mT / attention.head_dim**0.5
        logits = logits.masked_fill(torch.ones_like(logits[0], dtype=torch.bool).triu(1), -torch.inf)
        maps.append(logits.softmax(-1))
        mixed = (maps[-1] @ value.repeat_interleave(groups, 0)).transpose(0, 1).flatten(1)
        rows = rows + attention.o_proj(mixed)
        rows = rows + layer.mlp(layer.post_attention_layernorm(rows))
    return policy.backbone.norm(rows), layers, rows, torch.stack(maps)
