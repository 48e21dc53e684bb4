"""The reduction patch by patch: which numbers of which tokens become which score."""

import math


def vector(observables, token, layers, components, groups, later=None):
    """α of one visual token as a plain list; `later`: index of a later pass, whose action rows are head means."""
    if later is not None:
        per_layer = [float(observables.attention_action[later, layer, token]) for layer in layers]
        return per_layer if components == "layer" else [math.fsum(per_layer) / len(per_layer)]
    heads = range(observables.attention.shape[1])
    group_index = [observables.groups.index(group) for group in groups]

    def entry(layer, head, group):
        return float(observables.attention[layer, head, group, token])

    def mean(values):
        values = list(values)
        return math.fsum(values) / len(values)

    if components == "layer_head":
        return [entry(layer, head, g) for layer in layers for head in heads for g in group_index]
    if components == "head":
        return [mean(entry(layer, head, g) for layer in layers for g in group_index) for head in heads]
    if components == "query":
        return [mean(entry(layer, head, g) for layer in layers for head in heads) for g in group_index]
    return [mean(entry(layer, head, g) for head in heads for g in group_index) for layer in layers]


def mean_of(vectors):
    return [math.fsum(entries) / len(vectors) for entries in zip(*vectors, strict=True)]


def l1(values):
    return math.fsum(abs(value) for value in values)


def orthogonal(a, b):
    """The part of a that is orthogonal to b (Eq. 4)."""
    square = math.fsum(y * y for y in b)
    factor = math.fsum(x * y for x, y in zip(a, b, strict=True)) / square if square else 0.0
    return [x - factor * y for x, y in zip(a, b, strict=True)]


def reduce(observables, reduction, n_2d, n_3d):
    """Per patch: norm_2d, norm_3d, attention_2d, attention_3d, ortho_3d, points, as a list of tuples."""
    count = observables.attention.shape[0]
    layers = {"last_quarter": range(count - math.ceil(count / 4), count), "all": range(count)}.get(
        reduction.layers if isinstance(reduction.layers, str) else "", reduction.layers
    )
    norms = observables.norms[reduction.feature]
    maps = [
        {"projection": observables.patch, "nearest": observables.nearest_patch, "index": range(n_3d)}[
            reduction.correspondence
        ]
    ]
    passes = [None]
    if reduction.passes != "first":
        passes += list(range(observables.attention_action.shape[0]))
        maps += [range(n_3d) if reduction.correspondence == "index" else observables.patch_later[p] for p in passes[1:]]
    out = []
    for patch in range(n_2d):
        vectors_2d, vectors_3d = [], []
        for later, where in zip(passes, maps, strict=True):
            points = [i for i in range(n_3d) if where[i] == patch]
            args = (layers, reduction.components, reduction.groups, later)
            vectors_2d.append(vector(observables, patch, *args))
            vectors_3d.append(mean_of([vector(observables, n_2d + i, *args) for i in points]) if points else None)
        zero = [0.0] * len(vectors_2d[0])
        if reduction.passes == "all":
            alpha_2d = [x for v in vectors_2d for x in v]
            alpha_3d = [x for v in vectors_3d for x in (v or zero)]
        else:
            alpha_2d = mean_of(vectors_2d)
            alpha_3d = mean_of([v for v in vectors_3d if v is not None] or [zero])
        points = [i for i in range(n_3d) if maps[0][i] == patch]
        norm_3d = math.fsum(float(norms[n_2d + i]) for i in points) / len(points) if points else 0.0
        out.append(
            (float(norms[patch]), norm_3d, l1(alpha_2d), l1(alpha_3d), l1(orthogonal(alpha_3d, alpha_2d)), len(points))
        )
    return out
