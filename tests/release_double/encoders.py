"""The release's encoders and embedders, written from their equations in plain torch, with the release's names."""

import math

import torch
from torch import nn
from torch.nn import functional


def start_index(count: int) -> int:
    """Where farthest-point sampling begins: drawn anew in every forward."""
    return int(torch.randint(0, count, (1,)))


class FPS_kNN(nn.Module):
    def __init__(self, group_num, k_neighbors):
        super().__init__()
        self.group_num, self.k_neighbors = group_num, k_neighbors

    def forward(self, xyz, x):
        points = xyz[0]
        chosen = [start_index(len(points))]
        nearest = torch.full((len(points),), torch.inf)
        while len(chosen) < self.group_num:
            nearest = torch.minimum(nearest, ((points - points[chosen[-1]]) ** 2).sum(-1))
            chosen.append(int(nearest.argmax()))
        index = torch.tensor([chosen])
        centres = points[index[0]]
        # In the release's order and in place, so that autocast rounds every sum: near-ties go the way of the rounding.
        distance = -2 * (centres @ points.T)
        distance += (centres**2).sum(-1)[:, None]
        distance += (points**2).sum(-1)[None]
        near = distance.topk(self.k_neighbors, largest=False, sorted=False).indices
        return centres[None], x[:, index[0]], points[near][None], x[0, near][None], index


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.net1 = nn.Sequential(nn.Conv2d(width, width // 2, 1), nn.BatchNorm2d(width // 2), nn.ReLU())
        self.net2 = nn.Sequential(nn.Conv2d(width // 2, width, 1), nn.BatchNorm2d(width))

    def forward(self, x):
        return functional.relu(x + self.net2(self.net1(x)))


class LGA(nn.Module):
    def __init__(self, width, blocks):
        super().__init__()
        self.width = width
        self.linear2 = nn.Sequential(*(Block(width) for _ in range(blocks)))

    def forward(self, centres, features, near, near_features):
        offset = near - centres[:, :, None]
        offset = offset / offset.abs().amax(2, keepdim=True).clamp_min(1e-6)
        frequencies = self.width // 6
        parts = []
        for axis in range(3):
            angle = 100 * offset[..., axis, None] / 1000 ** (torch.arange(frequencies).float() / frequencies)
            parts += [angle.sin(), angle.cos()]
        joined = torch.cat([near_features, features[:, :, None].expand_as(near_features)], -1) + torch.cat(parts, -1)
        return self.linear2(joined.permute(0, 3, 1, 2)).amax(-1).transpose(1, 2)


class EncP(nn.Module):
    def __init__(self, config):
        super().__init__()
        width = config.point_width
        self.raw_point_embed = nn.Module()
        self.raw_point_embed.net = nn.Sequential(nn.Conv1d(3, width, 1, bias=False), nn.BatchNorm1d(width), nn.ReLU())
        stages = range(len(config.point_blocks))
        self.FPS_kNN_list = nn.ModuleList(FPS_kNN(config.points >> (i + 1), config.point_neighbours) for i in stages)
        self.LGA_list = nn.ModuleList(LGA(width << (i + 1), config.point_blocks[i]) for i in stages)

    def forward(self, xyz):
        x = self.raw_point_embed.net(xyz.transpose(1, 2)).transpose(1, 2)
        for sample, aggregate in zip(self.FPS_kNN_list, self.LGA_list, strict=True):
            xyz, features, near, near_features, _ = sample(xyz, x)
            x = aggregate(xyz, features, near, near_features)
        return x, xyz


class PatchEmbed(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.EncP = EncP(config)

    def forward(self, xyz):
        return self.EncP(xyz)


class PointTower(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.patch_embed = PatchEmbed(config)
        self.proj = nn.Linear(config.point_width << len(config.point_blocks), config.point_outputs)

    def forward(self, xyz):
        x, centres = self.patch_embed(xyz)
        return self.proj(x), centres


class ImageTower(nn.Module):
    def __init__(self, config):
        super().__init__()
        width, self.heads = config.image_width, config.image_heads
        self.patch_embedding = nn.Conv2d(3, width, 14, stride=14, bias=False)
        self.local_attention = nn.Module()
        self.local_attention.q = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width, bias=False))
        self.local_attention.kv = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width, bias=False))
        self.local_attention.proj = nn.Linear(width, width)

    def forward(self, image):
        features = self.patch_embedding(image[:, :3])  # the all-ones channel is ignored
        width = features.shape[1]
        cells = functional.unfold(features, 3, stride=3).view(width, 9, 256).permute(2, 1, 0)
        average = cells.mean(1)
        query = self.local_attention.q(average).view(256, 1, self.heads, -1)
        key, value = (part.view(256, 9, self.heads, -1) for part in self.local_attention.kv(cells).chunk(2, -1))
        weights = ((query * key).sum(-1) * width**-0.5).softmax(1)
        return average + self.local_attention.proj((weights[..., None] * value).sum(1).flatten(1))


class Projector(nn.Module):
    """Linear, GELU, Linear under the attribute name that this projector has in the release."""

    def __init__(self, attribute, inputs, hidden):
        super().__init__()
        self.attribute = attribute
        setattr(self, attribute, nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, hidden)))

    def forward(self, x):
        return getattr(self, self.attribute)(x)


class Mlp(nn.Module):
    def __init__(self, inputs, hidden, outputs):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)

    def forward(self, x):
        return self.fc2(functional.gelu(self.fc1(x), approximate="tanh"))


class Embedder(nn.Module):
    def __init__(self, inputs, hidden):
        super().__init__()
        self.mlp = Mlp(inputs, hidden, hidden)

    def forward(self, x):
        return self.mlp(x)


class TimestepEmbedder(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, hidden), nn.SiLU(), nn.Linear(hidden, hidden))

    def forward(self, t):
        angle = t.float()[:, None] * torch.exp(-math.log(10000) * torch.arange(128) / 128)
        return self.mlp(torch.cat([angle.cos(), angle.sin()], -1))


class FinalLayer(nn.Module):
    def __init__(self, hidden, outputs):
        super().__init__()
        self.norm_final = nn.Module()
        self.norm_final.weight = nn.Parameter(torch.ones(hidden))
        self.mlp = Mlp(hidden, hidden, outputs)

    def forward(self, x):
        return self.mlp(x * torch.rsqrt(x.var(-1, keepdim=True) + 1e-6) * self.norm_final.weight)
