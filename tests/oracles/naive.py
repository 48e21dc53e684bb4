"""The naive pruner token by token."""


def kept(uniforms, rate):
    """The round(N·(1 - rate)) tokens with the lowest uniforms, ties by lower index; at least one."""
    n = len(uniforms)
    order = sorted(range(n), key=lambda token: (uniforms[token], token))
    chosen = set(order[: max(1, round(n * (1 - rate)))])
    return [token in chosen for token in range(n)]
