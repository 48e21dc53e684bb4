"""That no pass mixes devices, checked without a GPU: on torch's `meta` device, where sums of two devices are refused.

What meets NumPy on the way (grouping points, the projection, the read-out) is left out: it takes its numbers to the
host.
"""

import pytest
import torch

from tracekit.model import MLA, WordTokenizer
from tracekit.model.layers import projections
from tracekit.model.points import PointStage
from tracekit.policy import Precision

from .conftest import WORDS, tiny_config

META = torch.device("meta")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("no_grad")
def test_a_pass_stays_on_the_device_of_the_weights(dtype):
    with META:
        policy = MLA(tiny_config(image_position=True), WordTokenizer(WORDS)).to(META)  # a buffer is made on the host
    for module in projections(policy):
        module.to(dtype)
    policy.precision = Precision("bfloat16" if dtype == torch.bfloat16 else "float32", "meta")
    indices = [(32, 8), (16, 8)]
    stages = tuple(
        PointStage(torch.zeros(m, dtype=torch.long, device=META), torch.zeros(m, k, dtype=torch.long, device=META))
        for m, k in indices
    )
    described, centres = policy.vision_tower_3d(torch.zeros(64, 3, device=META), stages)
    rows = policy.prefix_rows(
        policy.projector_3d(described),
        policy.image_tokens(torch.zeros(2, 3, 672, 672, device=META)),
        torch.zeros(6, dtype=torch.long, device=META),
        torch.zeros(10, device=META),
    )
    noise = torch.zeros(3, 10)  # the engine draws it on the host
    tail = policy.embed_tail(noise, 0)
    whole = policy.forward(torch.cat([rows, tail]), torch.arange(len(rows) + len(tail)))
    cache = policy.new_cache(len(rows) + len(tail))
    policy.forward(rows, torch.arange(len(rows)), cache)
    hidden = policy.forward(tail, torch.arange(len(rows), len(rows) + len(tail)), cache)
    cache.select(torch.arange(5, device=META))
    predicted = policy.read_noise(hidden[1:4])
    sample = policy.advance(noise, predicted, 0)
    for tensor in (centres, rows, tail, whole, hidden, predicted, sample):
        assert tensor.device == META
    for tensor in (rows, tail, whole, hidden, predicted):
        assert tensor.dtype == torch.float32


@pytest.mark.parametrize(
    "mix",
    [
        torch.add,
        lambda a, b: torch.cat([a, b]),
        lambda a, b: torch.nn.functional.scaled_dot_product_attention(a[None, None], a[None, None], b[None, None]),
    ],
)
def test_mixed_devices_would_be_refused(mix):
    with pytest.raises(RuntimeError):
        mix(torch.zeros(2, 2, device=META), torch.zeros(2, 2))
