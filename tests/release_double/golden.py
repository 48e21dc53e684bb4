"""A conformance folder computed by the stand-in for the release, which shares no code with `tracekit.model`."""

import json
from pathlib import Path

import numpy as np
import torch

from tests.release_double import double as double_module
from tests.release_double import encoders
from tests.release_double.double import double_of, project
from tests.release_double.runs import make_inputs
from tests.tracekit.model.release_files import state_dicts, write_run


def write_golden(folder: Path, policy, ids, monkeypatch, *, sidecar=None) -> Path:
    """The run directory of `policy` with golden.json and golden.npz, as the golden set of the release has them."""
    config = policy.config
    statistics = {
        part: {key: list(getattr(given, key)) for key in ("q01", "q99", "mask")}
        for part, given in (("action", config.action), ("proprio", config.state))
    }
    write_run(folder, state_dicts(policy), sidecar=sidecar, statistics={"rlbench": statistics})
    inputs = make_inputs(7)
    random = np.random.default_rng(8)
    mla = double_of(policy, {inputs["instruction"]: ids}, attention="eager")
    seen = watch(mla)
    noise = torch.from_numpy(random.normal(size=(1, *policy.action_shape)).astype(np.float32))
    starts = random.integers(0, [1024, 512], (config.ddim_steps, 2))
    drawn = iter(starts.ravel().tolist())
    monkeypatch.setattr(encoders, "start_index", lambda _count: next(drawn))
    monkeypatch.setattr(double_module, "initial_noise", lambda *_: noise)
    action = mla.predict_action_diff(**inputs)

    rows = torch.stack(seen["rows"])
    place = rows.shape[1] - config.action_window - 3  # of proprio, before timestep, action and tail
    text = place - (len(ids) - 2)
    cells, valid = project(seen["centres"][0][None])
    keep = random.random(rows.shape[1]) > np.where(np.arange(rows.shape[1]) < 513, 0.6, -1)
    keep[0] = True
    golden = {
        "image": inputs["image"],
        "point_cloud": inputs["pointcloud"][None],
        "state": inputs["cur_robot_state"],
        "text_ids": np.array(ids),
        "fps_start_indices": starts,
        "noisy_action": torch.stack(seen["sample"]),
        "predicted_noise": torch.stack(seen["noise"]),
        "denoise_timesteps": np.array(seen["timestep"], np.float64),
        "inputs_embeds": rows,
        "point_centres": torch.stack(seen["centres"]),
        "lm_head_l1": torch.stack(seen["logits"]),
        "hidden_states_step0": torch.stack(seen["hidden"][0]),
        "last_layer_prenorm_step0": seen["prenorm"][0],
        "attention_rows_step0": torch.stack(seen["maps"][: config.layers])[:, :, text:],
        "attention_row_positions": np.arange(text, rows.shape[1]),
        "patch_row_col_step0": cells[0],
        "patch_valid_step0": valid[0],
        "pruned_keep": keep,
        "action_unclipped": mla.unclipped[None],
        "action": action,
    }
    kept = torch.from_numpy(np.flatnonzero(keep))
    head = int(keep[: place + 2].sum())
    for name, positions in (("original", kept), ("compressed", torch.arange(len(kept)))):
        with torch.inference_mode():
            model = mla.vlm.llm_backbone.llm.model
            mask = torch.ones(1, len(kept), dtype=torch.long)
            given = {"inputs_embeds": rows[0][kept][None], "position_ids": positions[None], "attention_mask": mask}
            hidden = model(**given).last_hidden_state[:, head : head + config.action_window]
            golden[f"pruned_predicted_noise_{name}_positions"] = mla.vlm.final_layer(hidden)
    np.savez(folder / "golden.npz", **{name: np.asarray(value) for name, value in golden.items()})
    settings = {
        "source": "the stand-in for the release",
        "hidden_size": config.hidden_size,
        "layers": config.layers,
        "heads": config.heads,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "ddim_steps": config.ddim_steps,
        "future_action_window_size": config.action_window - 1,
        "instruction": inputs["instruction"],
        "precision": "fp32",
    }
    (folder / "golden.json").write_text(json.dumps(settings))
    return folder


def watch(mla):
    """Lists that fill up while `mla` predicts: one entry per pass, `maps` and `hidden` per layer."""
    seen = {
        name: [] for name in ("rows", "sample", "noise", "timestep", "centres", "logits", "hidden", "prenorm", "maps")
    }
    llm, vlm = mla.vlm.llm_backbone, mla.vlm
    forward = vlm.forward

    def called(x=None, t=None, **kwargs):
        output, noise = forward(x, t, **kwargs)
        seen["sample"].append(x)
        seen["timestep"].append(int(t))
        seen["noise"].append(noise)
        seen["logits"].append(output.logits[0].abs().sum(-1))
        seen["hidden"].append([one[0] for one in output.hidden_states])
        return output, noise

    vlm.forward = called
    llm.register_forward_pre_hook(lambda _m, _a, kw: seen["rows"].append(kw["inputs_embeds"][0]), with_kwargs=True)
    llm.llm.model.norm.register_forward_pre_hook(lambda _m, a: seen["prenorm"].append(a[0][0]))
    vlm.vision_tower_3d.register_forward_hook(lambda _m, _a, out: seen["centres"].append(out[1][0]))
    for layer in llm.llm.model.layers:
        layer.self_attn.register_forward_hook(lambda _m, _a, out: seen["maps"].append(out[1][0]))
    return seen
