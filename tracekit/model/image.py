"""Image tokens: 224² picture -> 672² -> 48 x 48 features -> 3 x 3 local attention pooling -> 16 x 16 tokens."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from tracekit.layout import GRID
from tracekit.model.layers import LayerNorm, Linear

__all__ = ["SIDE", "ImagePosition", "ImageProjector", "ImageTower", "pixels_of"]

SIDE = 672
"""Side in pixels of the picture that the tower sees."""

PATCH = 14
POOL = 3
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def pixels_of(image: npt.NDArray[np.uint8]) -> Tensor:
    """(3, 672, 672) float32 pixels of an (H, W, 3) uint8 RGB `image`.

    Bicubic resize on bytes, /255, then CLIP's mean and deviation per channel.
    """
    resized = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


class LocalAttention(nn.Module):
    """Pools each 3 x 3 cell into one token: the cell's mean asks, its nine features answer, and the mean is added back.

    Logits are q·k per head times width^-1/2 with the *full* width, as the release scales them.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Sequential(LayerNorm(width), Linear(width, width, bias=False))
        self.kv = nn.Sequential(LayerNorm(width), Linear(width, 2 * width, bias=False))
        self.proj = Linear(width, width)

    def forward(self, cells: Tensor) -> Tensor:
        """(..., 9, width) -> (..., width)."""
        average = cells.mean(-2)
        query = self._heads(self.q(average))
        key, value = (self._heads(part) for part in self.kv(cells).chunk(2, -1))
        logits = torch.einsum("...hd,...nhd->...hn", query, key) * cells.shape[-1] ** -0.5
        weights = logits.float().softmax(-1).to(value.dtype)
        pooled = torch.einsum("...hn,...nhd->...hd", weights, value).flatten(-2)
        token: Tensor = average + self.proj(pooled)
        return token

    def _heads(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., heads, width / heads)."""
        return x.reshape(*x.shape[:-1], self.heads, -1)


class ImageTower(nn.Module):
    """The release's image tokenizer without its class token and global attention, whose results it discards."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, width, PATCH, stride=PATCH, bias=False)
        self.local_attention = LocalAttention(width, heads)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, 672, 672) -> (B, 256, width); token i is row i // 16, column i % 16."""
        features = self.patch_embedding(pixels.to(self.patch_embedding.weight.dtype))
        cells = features.view(*features.shape[:2], GRID, POOL, GRID, POOL)
        cells = cells.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)
        tokens: Tensor = self.local_attention(cells)
        return tokens


class ImageProjector(nn.Module):
    """Linear, exact GELU, Linear: tower width -> hidden size."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(Linear(inputs, hidden), nn.GELU(), Linear(hidden, hidden))

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., inputs) -> (..., hidden)."""
        projected: Tensor = self.mlp(tokens)
        return projected


class ImagePosition(nn.Module):
    """A learned projection of sines and cosines of row and column, added to a view's image tokens.

    The release has none: there an image token does not know its place. Small policies learn the binding of image to
    cloud far faster with it.
    """

    FREQUENCIES = 8
    code: Tensor

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.proj = Linear(4 * self.FREQUENCIES, hidden)
        self.register_buffer("code", _raster_code(self.FREQUENCIES), persistent=False)

    def forward(self) -> Tensor:
        """(256, hidden), row-major."""
        rows: Tensor = self.proj(self.code)
        return rows


def _raster_code(frequencies: int) -> Tensor:
    """(256, 4·frequencies): sin and cos of π·j·(i + ½)/16 for j = 1 ... frequencies, rows first, then columns.

    On the CPU even in a module that is made on the meta device: no checkpoint has it, and torch would load its compiler
    to count on that device.
    """
    with torch.device("cpu"):
        place = (torch.arange(GRID, dtype=torch.float32) + 0.5) / GRID
        angles = torch.pi * place[:, None] * torch.arange(1, frequencies + 1)
    axis = torch.cat([angles.sin(), angles.cos()], -1)
    rows = axis[:, None].expand(GRID, GRID, -1)
    return torch.cat([rows, rows.transpose(0, 1)], -1).flatten(0, 1).contiguous()
