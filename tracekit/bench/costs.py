"""Operations and bytes of a LLaMA decoder, by counting: what the measured times are held against."""

from __future__ import annotations

from dataclasses import dataclass

from tracekit.model import MLAConfig

__all__ = ["Cost", "decoder_cost", "head_cost", "kv_cache_bytes"]


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


def head_cost(config: MLAConfig, rows: int, item_bytes: int) -> Cost:
    """The vocabulary head over `rows` rows, which the release computes and no action needs."""
    weights = config.hidden_size * config.vocab_size
    return Cost(2 * rows * weights, item_bytes * weights)


def kv_cache_bytes(config: MLAConfig, rows: int, item_bytes: int) -> int:
    """Bytes of the keys and values of `rows` rows in all layers."""
    return 2 * config.layers * config.kv_heads * (config.hidden_size // config.heads) * rows * item_bytes
