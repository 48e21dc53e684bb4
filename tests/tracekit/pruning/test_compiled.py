"""The compiled stages against the same lines run by the interpreter: nothing is fused, reordered or widened."""

import json
import os
import subprocess
import sys

from tracekit.pruning import DecisionKey, Shape, decision_digest
from tracekit.pruning._compile import compiled, source_digest
from tracekit.pruning.tri_stage import TriStageConfig, decide_episode
from tracekit.testing import random_scores

CONFIGS = [
    {},
    {"window": "window_mean", "k": 2, "draw": "stratified", "object_rule": "quantiles", "baseline": "per_set"},
    {"cluster_input": "smoothed", "clustering": "separate", "ortho": "clamp", "beta": 0.3, "k": 1},
    {"budget": "soft", "rate": 0.6},
]


def digests() -> list[str]:
    """One digest per configuration, of masks and reasons and the exact bits of all margins."""
    out = []
    for number, options in enumerate(CONFIGS):
        shape = Shape(256, 256)
        config = TriStageConfig(**options)
        decisions, state = decide_episode(random_scores(shape, 3, number), config, DecisionKey(1, 2, 1), shape)
        bits = [margin.tobytes().hex() for decision in decisions for margin in decision.margins.values()]
        bits += [array.tobytes().hex() for array in state.to_arrays().values()]
        out.append(decision_digest(decisions) + json.dumps(bits))
    return out


def test_compiled_and_interpreted_agree_on_every_bit():
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    code = f"import runpy, json; print(json.dumps(runpy.run_path({__file__!r})['digests']()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == digests()


def test_machine_code_is_kept_under_a_digest_of_all_sources(tmp_path):
    def nothing():
        return 0

    assert compiled(nothing).py_func.__qualname__.endswith(compiled(lambda: 0).py_func.__qualname__[-13:])
    (tmp_path / "a.py").write_text("x = 1")
    (tmp_path / "b.py").write_text("y = 1")
    files = sorted(tmp_path.iterdir())
    before = source_digest(*files)
    assert before == source_digest(*reversed(files))
    (tmp_path / "b.py").write_text("y = 2")  # the same length, and perhaps the same time stamp
    assert before != source_digest(*files)
