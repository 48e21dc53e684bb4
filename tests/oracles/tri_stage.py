"""Algorithm 1 patch by patch in plain Python, to be read beside the paper; the oracle of the compiled version.

Inputs are lists with one number per patch. Where the method adds numbers up, it does so in integers: `grains` gives the
unit, and from there on everything is exact (`Fraction`, brute force over all cuts).
"""

import functools
import itertools
import math
from dataclasses import dataclass, field
from fractions import Fraction

BITS = 50
NOTHING, ONLY_2D, ONLY_3D, BOTH = 0, 1, 2, 3
BACKGROUND, ROBOT, OBJECT = 0, 1, 2
INDICATORS = ("m_2d_s1", "m_3d_s1", "m_2d_s2", "m_3d_s2", "cluster_score")


def grains(values):
    """The values as whole numbers of a unit, and the unit: 2⁻⁵⁰ of the power of two above the largest, or 2⁻¹⁰⁰⁰."""
    largest = max(values)
    exponent = min(BITS - math.frexp(largest)[1], 1000) if largest > 0 else 0
    return [int(Fraction(value) * Fraction(2) ** exponent) for value in values], Fraction(1, 2) ** exponent


def share(part, whole):
    return part / whole if whole > 0 else 0.0


@dataclass
class Memory:
    """Per patch: smoothed indicators, all observed values, held attention and held point count."""

    smoothed: list[dict] = field(default_factory=list)
    history: list[list[dict]] = field(default_factory=list)
    attention: list[tuple] = field(default_factory=list)
    points: list[int] = field(default_factory=list)


def start(patches):
    return Memory([{} for _ in range(patches)], [[] for _ in range(patches)], [(0.0, 0.0)] * patches, [0] * patches)


def smooth(memory, step, config, has_points, observed, still):
    """Stage 3. `step`: the scores of one step as lists; `observed`: flags or None; `still`: patches left unsmoothed."""
    patches = range(len(step["norm_2d"]))
    factor = 1.0
    if observed is not None and not all(observed):
        seen = [p for p in patches if observed[p]]
        held, held_unit = grains([sum(memory.attention[p]) for p in patches])
        new, new_unit = grains([step["attention_2d"][p] + step["attention_3d"][p] for p in patches])
        held_sum = float(sum(held[p] for p in seen)) * float(held_unit)
        new_sum = float(sum(new[p] for p in seen)) * float(new_unit)
        if held_sum > 0 and new_sum > 0:
            factor = held_sum / new_sum
    for p in patches:
        if observed is not None and not observed[p]:
            continue
        f2, f3 = step["norm_2d"][p], step["norm_3d"][p]
        a2, a3, ortho = step["attention_2d"][p], step["attention_3d"][p], step["ortho_3d"][p]
        if config.ortho == "clamp":
            ortho = min(ortho, a3)
        memory.attention[p] = (factor * a2, factor * a3)
        memory.points[p] = step["points"][p]
        x = {
            "m_2d_s1": share(f2, f2 + f3),
            "m_3d_s1": share(f3, f2 + f3),
            "m_2d_s2": share(a2, a2 + a3) if has_points else memory.attention[p][0],
            "m_3d_s2": share(ortho, a2 + a3),
            "cluster_score": memory.attention[p][0] if config.clustering == "separate" else sum(memory.attention[p]),
        }
        memory.history[p].append(x)
        t = len(memory.history[p])
        if t == 1 or "s3" not in config.stages or still[p]:
            memory.smoothed[p] = x
        elif config.window == "window_mean":
            last = memory.history[p][-config.k :]
            memory.smoothed[p] = {name: sum(v[name] for v in last) / len(last) for name in x}
        else:
            old = memory.smoothed[p]
            if t < config.k:
                memory.smoothed[p] = {name: ((t - 1) / t) * old[name] + (1 / t) * x[name] for name in x}
            else:
                memory.smoothed[p] = {name: config.beta * old[name] + (1 - config.beta) * x[name] for name in x}


def stage1(memory, config, has_points, tau_2d, tau_3d):
    s1 = []
    for patch in memory.smoothed:
        m_3d = patch["m_3d_s1"]
        if not has_points:
            s1.append(ONLY_2D)
        elif "s1" not in config.stages:
            s1.append(BOTH)
        elif m_3d < tau_2d:
            s1.append(ONLY_2D)
        elif m_3d > tau_3d:
            s1.append(ONLY_3D)
        else:
            s1.append(BOTH)
    return s1


def clusters(values, k=3):
    return best_partition(tuple(values), k)


@functools.lru_cache(maxsize=64)
def best_partition(values, k):
    """Rank of each value's cluster (0 the lowest) and their number: best of all partitions, with the lowest cuts."""
    integers, _ = grains(values)
    distinct = sorted(set(integers))
    k = min(k, len(distinct))
    best = None
    for cuts in itertools.combinations(range(1, len(distinct)), k - 1):
        edges = (0, *cuts, len(distinct))
        cost = Fraction(0)
        for low, high in itertools.pairwise(edges):
            members = [i for i in integers if i in distinct[low:high]]
            mean = Fraction(sum(members), len(members))
            cost += sum((i - mean) ** 2 for i in members)
        if best is None or cost < best[0]:
            best = cost, cuts
    return [sum(i >= distinct[cut] for cut in best[1]) for i in integers], k


def cluster(memory, config):
    if config.cluster_input == "smoothed":
        values = [patch["cluster_score"] for patch in memory.smoothed]
    elif config.clustering == "separate":
        values = [a2 for a2, _ in memory.attention]
    else:
        values = [a2 + a3 for a2, a3 in memory.attention]
    ranks, k = clusters(values)
    names = (OBJECT, ROBOT, BACKGROUND) if config.cluster_order == "attention" else (BACKGROUND, ROBOT, OBJECT)
    return [names[k - 1 - rank] for rank in ranks]


def above_mean(values, p, members):
    """Whether values[p] exceeds the mean over `members`, in whole grains."""
    whole, _ = grains(values)
    mean = Fraction(sum(whole[q] for q in members), len(members)) if members else Fraction(0)
    return whole[p] > mean


def quantile(values, q):
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def stage2(memory, config, has_points, draws, rate):
    """S2 and the cluster of every patch."""
    patches = range(len(memory.smoothed))
    if "s2" not in config.stages:
        return [BOTH] * len(patches), None
    sets = cluster(memory, config)
    m_2d = [patch["m_2d_s2"] for patch in memory.smoothed]
    m_3d = [patch["m_3d_s2"] for patch in memory.smoothed]
    members = [p for p in patches if memory.points[p] > 0 or not has_points or config.baseline == "all_patches"]
    if config.baseline == "per_set":
        members = [p for p in members if sets[p] == ROBOT]
    objects = [p for p in patches if sets[p] == OBJECT]
    at_least, at_most = config.object_2d_min, config.object_3d_max
    if config.object_rule == "quantiles" and objects:
        at_least, at_most = quantile([m_2d[p] for p in objects], 0.9), quantile([m_3d[p] for p in objects], 0.1)
    ground = [p for p in patches if sets[p] == BACKGROUND]
    dropped = {p for p in ground if draws[p] < rate}
    if config.draw == "stratified":
        dropped = set(sorted(ground, key=lambda p: (draws[p], p))[: round(rate * len(ground))])
    everything = BOTH if has_points else ONLY_2D
    s2 = []
    for p in patches:
        if sets[p] == BACKGROUND:
            s2.append(NOTHING if p in dropped else everything)
        elif sets[p] == ROBOT:
            if has_points and above_mean(m_3d, p, members):
                s2.append(BOTH)
            elif above_mean(m_2d, p, members) or config.robot_empty == "keep_2d":
                s2.append(ONLY_2D)
            else:
                s2.append(NOTHING)
        elif has_points and m_2d[p] >= at_least and m_3d[p] <= at_most:
            s2.append(ONLY_2D)
        else:
            s2.append(everything)
    return s2, sets


def fuse(s1, s2, sets, config):
    """Masks and conflicts."""
    keep_2d, keep_3d, conflict = [], [], []
    for p in range(len(s1)):
        c = s1[p] & s2[p]
        conflict.append(s2[p] != NOTHING and c == NOTHING)
        if conflict[p]:
            c = s2[p]
        on_object = sets is not None and sets[p] == OBJECT
        if s2[p] != NOTHING and (config.protect == "all_2d" or (config.protect == "object_2d" and on_object)):
            c |= ONLY_2D
        keep_2d.append(config.modalities == "3d" or bool(c & ONLY_2D))
        keep_3d.append(config.modalities == "2d" or bool(c & ONLY_3D))
    return keep_2d, keep_3d, conflict


def masks(memory, config, n_3d, draws, rate, tau_2d, tau_3d):
    s1 = stage1(memory, config, n_3d > 0, tau_2d, tau_3d)
    s2, sets = stage2(memory, config, n_3d > 0, draws, rate)
    keep_2d, keep_3d, conflict = fuse(s1, s2, sets, config)
    return {"s1": s1, "s2": s2, "cluster": sets, "keep_2d": keep_2d, "keep_3d": keep_3d, "conflict": conflict}


def pruned_share(memory, config, n_3d, answer):
    """The share of visual tokens that is pruned, unprojected points included."""
    projected = sum(memory.points)
    kept = sum(n for n, keep in zip(memory.points, answer["keep_3d"], strict=True) if keep)
    lost = max(n_3d - projected, 0)
    stays = {"keep": 1.0, "drop": 0.0, "random": kept / projected if projected else 1.0}[config.unprojected_points]
    if config.modalities == "2d":
        stays = 1.0
    patches = len(memory.points)
    return 1.0 - (sum(answer["keep_2d"]) + kept + stays * lost) / (patches + projected + lost)


def soft(memory, config, n_3d, draws):
    """Every setting at which anything can change is tried; the nearest wins, of equals the one that prunes least."""
    whole = 2**24

    def attempt(step, gap):
        inwards = gap / whole * (config.tau_3d - config.tau_2d) / 2
        answer = masks(memory, config, n_3d, draws, step / whole, config.tau_2d + inwards, config.tau_3d - inwards)
        return pruned_share(memory, config, n_3d, answer), answer

    def nearest(settings, rate_at):
        rates = {place: rate_at(place) for place in sorted(settings)}
        return min(rates, key=lambda place: (abs(rates[place] - config.rate), rates[place], place))

    steps = {0, whole}
    count = len(draws)
    for draw in draws:
        steps |= {int(draw * whole), int(draw * whole) + 1}
    if config.draw == "stratified":
        for n in range(1, count + 1):
            for i in range(2 * n + 1):
                place = int(Fraction(i, 2 * n) * whole)
                steps |= {min(max(place + d, 0), whole) for d in (-2, -1, 0, 1, 2)}
    step = nearest(steps, lambda place: attempt(place, 0)[0]) if "s2" in config.stages else 0
    gap = 0
    enough = attempt(whole if "s2" in config.stages else 0, 0)[0] >= config.rate
    if "s1" in config.stages and n_3d > 0 and not enough and attempt(step, 0)[0] < config.rate:
        gaps = {0, whole}
        width = config.tau_3d - config.tau_2d
        for patch in memory.smoothed:
            for inwards in (patch["m_3d_s1"] - config.tau_2d, config.tau_3d - patch["m_3d_s1"]):
                if width > 0:
                    place = int(2 * inwards / width * whole)
                    gaps |= {min(max(place + d, 0), whole) for d in range(-4, 5)}
        gap = nearest(gaps, lambda place: attempt(step, place)[0])
    reached, answer = attempt(step, gap)
    answer["notes"] = {
        "target_rate": config.rate,
        "reached_rate": reached,
        "background_rate": step / whole,
        "gap_closed": gap / whole,
    }
    return answer


def hard_topk(memory, config, answer, patch_of_point):
    """Exactly round(N·(1 - rate)) tokens per modality."""

    def best(tokens, patch_of, mask, saliency):
        def rank(token):
            p = patch_of(token)
            if p < 0:
                return (1, 0, 0, 0, token)
            cluster_rank = answer["cluster"][p] if answer["cluster"] is not None else 0
            return (0, not mask[p], -cluster_rank, -memory.smoothed[p][saliency], token)

        kept = sorted(range(tokens), key=rank)[: max(1, round(tokens * (1 - config.rate)))]
        return [token in kept for token in range(tokens)]

    if config.modalities != "3d":
        answer["keep_2d"] = best(len(answer["s1"]), lambda token: token, answer["keep_2d"], "m_2d_s2")
    if patch_of_point is not None:
        answer["keep_3d_tokens"] = [True] * len(patch_of_point)
        if config.modalities != "2d":
            answer["keep_3d_tokens"] = best(
                len(patch_of_point), lambda token: patch_of_point[token], answer["keep_3d"], "m_3d_s2"
            )
    return answer


def decide(memory, step, config, t, n_3d, draws, observed=None, still=None, patch_of_point=None):
    """One control step; changes `memory`. Returns a dict of lists."""
    patches = len(step["norm_2d"])
    smooth(memory, step, config, n_3d > 0, observed, still or [False] * patches)
    if config.budget == "soft":
        answer = soft(memory, config, n_3d, draws)
    else:
        answer = masks(memory, config, n_3d, draws, config.background_rate, config.tau_2d, config.tau_3d)
    if config.budget == "hard_topk":
        answer = hard_topk(memory, config, answer, patch_of_point)
    answer["pruned"] = t >= (config.prune_from if "s3" in config.stages else 1)
    if not answer["pruned"]:
        answer["keep_2d"] = [True] * patches
        answer["keep_3d"] = [True] * patches
        answer.pop("keep_3d_tokens", None)
    return answer
