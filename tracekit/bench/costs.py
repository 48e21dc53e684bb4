"""Operations and bytes of an MLA policy, by counting: what the measured times are held against.

Counted are the products (linear layers, convolutions, attention) and the weights they read, each once per use. Norms,
activations and the search for point groups are not: what they take is what keeps a measured time above its limit.
"""

from __future__ import annotations

from dataclasses import dataclass

from tracekit.layout import GRID, PATCHES_PER_VIEW
from tracekit.model import MLAConfig
from tracekit.model.embedders import FREQUENCIES
from tracekit.model.image import PATCH, POOL

__all__ = ["Cost", "decoder_cost", "encoder_cost", "head_cost", "kv_cache_bytes", "tail_cost"]


@dataclass(frozen=True, slots=True)
class Cost:
    """`flops`: multiplications and additions. `nbytes`: weights read once, and keys and values read and written."""

    flops: float
    nbytes: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.nbytes + other.nbytes)

    def times(self, count: int) -> Cost:
        """The cost of doing it `count` times."""
        return Cost(count * self.flops, count * self.nbytes)


def decoder_cost(config: MLAConfig, rows: int, held: int, item_bytes: int) -> Cost:
    """All layers for `rows` rows that follow `held` cached ones; weights and cache of `item_bytes` per number."""
    hidden, wide = config.hidden_size, config.intermediate_size
    kv_width = config.kv_heads * hidden // config.heads
    weights = 2 * hidden * hidden + 2 * hidden * kv_width + 3 * hidden * wide
    keys_seen = rows * held + rows * (rows + 1) / 2
    flops = 2 * rows * weights + 4 * keys_seen * hidden
    nbytes = item_bytes * (weights + 2 * kv_width * (held + rows))
    return Cost(config.layers * flops, config.layers * nbytes)


def encoder_cost(config: MLAConfig, item_bytes: int) -> Cost:
    """The prefix of one pass: image tokens of all views, point tokens and the state, up to the decoder's width."""
    hidden, width = config.hidden_size, config.image_width
    pixels = 3 * PATCH * PATCH
    image = [
        (GRID * GRID * POOL * POOL, pixels * width),
        (PATCHES_PER_VIEW, 2 * width * width),  # query and output projection
        (PATCHES_PER_VIEW * POOL * POOL, 2 * width * width),
        (PATCHES_PER_VIEW, width * hidden + hidden * hidden),
    ]
    pooled = 4 * PATCHES_PER_VIEW * POOL * POOL * width
    points = [(config.points, 3 * config.point_width)]
    for stage, blocks in enumerate(config.point_blocks):
        wide = config.point_width << (stage + 1)
        rows = (config.points >> (stage + 1)) * config.point_neighbours
        points += [(rows, wide * wide)] * blocks  # half the width inside: 2 · wide · wide / 2 weights
    deepest = config.point_width << len(config.point_blocks)
    points.append(
        (config.point_tokens, deepest * config.point_outputs + config.point_outputs * hidden + hidden * hidden)
    )
    points.append((1, config.action_size * hidden + hidden * hidden))  # the state
    views = len(config.views)
    flops = views * (2 * sum(rows * weights for rows, weights in image) + pooled)
    flops += 2 * sum(rows * weights for rows, weights in points)
    return Cost(float(flops), float(item_bytes * sum(weights for _, weights in image + points)))


def tail_cost(config: MLAConfig, item_bytes: int) -> Cost:
    """Around the decoder in one pass: embedding timestep and noisy action, and reading the noise."""
    hidden, numbers = config.hidden_size, config.action_size
    products = [
        (1, 2 * FREQUENCIES * hidden + hidden * hidden),
        (config.action_window, numbers * hidden + hidden * hidden),
        (config.action_window, hidden * hidden + hidden * numbers),
    ]
    flops = 2 * sum(rows * weights for rows, weights in products)
    return Cost(float(flops), float(item_bytes * sum(weights for _, weights in products)))


def head_cost(config: MLAConfig, rows: int, item_bytes: int) -> Cost:
    """The vocabulary head over `rows` rows, which the release computes and no action needs."""
    weights = config.hidden_size * config.vocab_size
    return Cost(2.0 * rows * weights, float(item_bytes * weights))


def kv_cache_bytes(config: MLAConfig, rows: int, item_bytes: int) -> int:
    """Bytes of the keys and values of `rows` rows in all layers."""
    return 2 * config.layers * config.kv_heads * (config.hidden_size // config.heads) * rows * item_bytes
