"""FastV, SP-VLA and VLA-Pruner token by token in plain Python. Scores are lists, answers are sets of token indices."""

import math
from fractions import Fraction


def count_kept(tokens, rate):
    return max(1, round(tokens * (1 - rate)))


def best(scores, count):
    """The `count` highest scores, ties by lower index."""
    return set(sorted(range(len(scores)), key=lambda token: (-scores[token], token))[:count])


def fastv(scores, n_2d, rate):
    """Kept image tokens, kept point tokens (by index among the points)."""
    images, points = scores[:n_2d], scores[n_2d:]
    return best(images, count_kept(n_2d, rate)), best(points, count_kept(len(points), rate)) if points else set()


def sp_vla_fixed(scores, edges, n_2d, rate):
    images, points = scores[:n_2d], scores[n_2d:]
    budget = round(len(scores) * (1 - rate))
    fitting = [a for a in range(1, n_2d + 1) if len(edges | best(images, a)) + len(best(points, a)) <= budget]
    a = max(fitting, default=1)
    return edges | best(images, a), best(points, a)


def by_share(scores, threshold):
    """Tokens in order of attention while their cumulative share stays below the threshold, and one more."""
    order = sorted(range(len(scores)), key=lambda token: (-scores[token], token))
    total = sum(Fraction(score) for score in scores)
    kept, cumulative = [], Fraction(0)
    for token in order:
        kept.append(token)
        cumulative += Fraction(scores[token])
        if not total or cumulative / total >= threshold:
            break
    return set(kept)


def sp_vla_velocity(scores, edges, n_2d, speed, v_threshold, z_min):
    """None where T is 1 and nothing is pruned."""
    threshold = 1.0 if speed <= v_threshold else 1 - (min(speed, 1) - v_threshold) * z_min / (1 - v_threshold)
    if threshold == 1:
        return None
    images, points = scores[:n_2d], scores[n_2d:]
    return edges | by_share(images, threshold), by_share(points, threshold) if points else set()


def cosine(a, b):
    lengths = math.sqrt(math.fsum(x * x for x in a)) * math.sqrt(math.fsum(x * x for x in b))
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else 0.0


def diverse(vectors, candidates, count):
    """Greedy max-min cosine distance; the first is the one with the largest distance to its nearest neighbour."""
    candidates = sorted(candidates)
    if len(candidates) <= count:
        return set(candidates)

    def distance(i, j):
        return 1 - cosine(vectors[i], vectors[j])

    chosen = [max(candidates, key=lambda i: (min(distance(i, j) for j in candidates if j != i), -i))]
    while len(chosen) < count:
        rest = [i for i in candidates if i not in chosen]
        chosen.append(max(rest, key=lambda i: (min(distance(i, j) for j in chosen), -i)))
    return set(chosen)


def place_of_point(entry, patch, centre):
    """What an entry of the history holds for a point token in `patch` at `centre`."""
    if patch >= 0:
        here = [value for value, p in zip(entry["point"], entry["patch"], strict=True) if p == patch]
        return sum(here) / len(here) if here else 0.0

    def away(other):
        return sum((float(a) - float(b)) ** 2 for a, b in zip(centre, entry["centres"][other], strict=True))

    return entry["point"][min(range(len(entry["point"])), key=lambda other: (away(other), other))]


def vla_pruner(semantic, history, now, n_2d, config, embeddings):
    """`history`: entries {image, point, patch, centres}, oldest first; `now`: {patch, centres}. None: no pruning."""
    if config.warmup != "none" and len(history) < config.window:
        return None
    action = [0.0] * len(semantic)
    for index, entry in enumerate(history):
        age = index if config.variant == "released" else len(history) - 1 - index
        here = list(entry["image"]) + [
            place_of_point(entry, p, c) for p, c in zip(now["patch"], now["centres"], strict=True)
        ]
        action = [a + config.decay**age * h for a, h in zip(action, here, strict=True)]
    kept = []
    for first, last in ((0, n_2d), (n_2d, len(semantic))):
        m = count_kept(last - first, config.rate)
        union = best(semantic[first:last], m)
        if history:
            union |= best(action[first:last], m)
        kept.append(diverse(embeddings[first:last], union, m))
    return kept
