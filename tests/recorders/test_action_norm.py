import pytest
import torch
from torch import nn

from recorders.action_norm import action_norm
from tests.release_double.encoders import FinalLayer


class RootMeanSquare(FinalLayer):
    """The head of a release that found APEX."""

    def forward(self, x):
        return self.mlp(x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.norm_final.weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "name"), [(FinalLayer, "std"), (RootMeanSquare, "rms")])
def test_the_norm_is_told_by_what_the_head_answers(kind, name, dtype):
    torch.manual_seed(0)
    head = kind(64, 7)
    nn.init.uniform_(head.norm_final.weight, 0.5, 1.5)
    state = torch.get_rng_state()
    assert action_norm(head.to(dtype)) == name
    assert torch.equal(torch.get_rng_state(), state)


def test_other_heads_are_not_guessed_at():
    head = FinalLayer(64, 7)
    head.norm_final = nn.LayerNorm(64)
    head.forward = lambda x: head.mlp(head.norm_final(x))
    assert action_norm(head) is None
    assert action_norm(nn.Linear(3, 3)) is None
