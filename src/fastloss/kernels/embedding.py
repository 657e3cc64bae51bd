"""Losses of a batch of embeddings: matrix products are BLAS's, and these kernels are the scans between them.

One item is one anchor, a row of a B × B matrix, or a band of rows. A row's scans are vector loops without branches:
which columns count is a selection by the classes' numbers. Everything a row finds (its loss, what each of its distances
adds to the loss) stays in that row. What flows from distances to embeddings needs the sum of a matrix and its
transpose, which `flow_euclidean` and `flow_cosine` form by bands, in the memory of the distances.

Indices are unsigned in vector loops, because Python's wrap-around for negative ones keeps them scalar.
"""

from __future__ import annotations

import numpy as np

from fastloss.kernels.definition import itemwise

BAND = 32
"""Rows of a band: a square tile of 32 × 32 numbers fits the first-level cache, and turns there."""

NEAR = 1.0 / 64
"""Squared distances below this part of the squared norms are computed anew, from the difference of the embeddings:
a Gram matrix leaves 1/NEAR rounding errors there, and none of the digits of a far smaller distance."""

CHUNK = 1024
"""Elements that are summed in the compute dtype, before they go to a sum in float64."""

RUN = 8
"""Elements that are sorted by insertion, before runs are merged."""


@itemwise
def euclidean(xp):
    """Row i of a Gram matrix becomes distances or their squares, in place; symmetric to the bit, the diagonal 0."""
    zero, two, near = xp.consts(0.0, 2.0, NEAR)

    # Not in the loop itself, which may reassociate: the sum of the norms comes first for (i, j) and for (j, i).
    @xp.jit
    def apart(norms, product):
        return norms - two * product

    def item(i, gram, norms, embeddings, squared):
        row, x = gram[i], embeddings[i]
        own = norms[i]
        n, size = row.shape[0], x.shape[0]
        close = 0
        for j in range(n):
            both = own + norms[np.uintp(j)]
            d = apart(both, row[np.uintp(j)])
            close += 1 if d < near * both else 0
            row[np.uintp(j)] = zero if d < zero else d
        if close > 1:  # the diagonal is one
            for j in range(n):
                if row[j] < near * (own + norms[j]):
                    y = embeddings[j]
                    total = zero
                    for k in range(size):
                        e = x[np.uintp(k)] - y[np.uintp(k)]
                        total += e * e
                    row[j] = total
        if not squared:
            for j in range(n):
                row[np.uintp(j)] = np.sqrt(row[np.uintp(j)])
        if row[i] == row[i]:
            row[i] = zero

    return item


def _turned(xp):
    """A tile of the transpose, each of its columns times the column's factor."""

    @xp.jit
    def turn(weights, factors, tile, first, last, start, stop):
        for c in range(start, stop):
            source = weights[c]
            factor = factors[c]
            for r in range(first, last):
                tile[np.uintp((r - first) * BAND + c - start)] = factor * source[np.uintp(r)]

    return turn


@itemwise
def flow_euclidean(xp):
    """A band of rows of the matrix that takes embeddings to their gradient, in place of distances.

    With v_rc = (f_r w_rc + f_c w_cr)/d_rc, or twice the sum for squared distances, the gradient of row r is
    Σ v_rc (x_r - x_c). The matrix has -v_rc off its diagonal and the sum of the row's v there. Where two embeddings are
    close, that product would cancel: those differences go to the gradient at once, and their v is 0.
    """
    zero, two, near = xp.consts(0.0, 2.0, NEAR)
    turn = _turned(xp)

    @xp.jit
    def flow(w, d, squared):
        # At distance 0 the gradient of the norm is taken as 0. NaN stays.
        return two * w if squared else (zero if d == zero else w / d)

    def item(t, distances, weights, factors, norms, embeddings, scratch, gradient, squared):
        n, size = distances.shape[0], embeddings.shape[1]
        tile = scratch[t]
        first = t * BAND
        last = min(first + BAND, n)
        for start in range(0, n, BAND):
            stop = min(start + BAND, n)
            turn(weights, factors, tile, first, last, start, stop)
            for r in range(first, last):
                row, w = distances[r], weights[r]
                factor, own, base = factors[r], norms[r], (r - first) * BAND - start
                close = 0
                for c in range(start, stop):
                    d = row[np.uintp(c)]
                    d = d if squared else d * d
                    both = factor * w[np.uintp(c)] + tile[np.uintp(base + c)]
                    close += 1 if (d < near * (own + norms[np.uintp(c)])) & (both != zero) else 0
                if close == 0:
                    for c in range(start, stop):
                        both = factor * w[np.uintp(c)] + tile[np.uintp(base + c)]
                        row[np.uintp(c)] = -flow(both, row[np.uintp(c)], squared)
                else:
                    for c in range(start, stop):
                        v = flow(factor * w[c] + tile[base + c], row[c], squared)
                        d = row[c] if squared else row[c] * row[c]
                        if d < near * (own + norms[c]):
                            if v != zero:
                                x, y, g = embeddings[r], embeddings[c], gradient[r]
                                for k in range(size):
                                    g[np.uintp(k)] += v * (x[np.uintp(k)] - y[np.uintp(k)])
                            v = zero
                        row[c] = -v
        for r in range(first, last):
            row = distances[r]
            row[r] = zero
            total = 0.0
            for start in range(0, n, CHUNK):
                part = zero
                for c in range(start, min(start + CHUNK, n)):
                    part += row[np.uintp(c)]
                total += part
            row[r] = -total

    return item


@itemwise
def flow_cosine(xp):
    """A band of rows of the matrix that takes unit vectors to their gradient, in place of distances 1 - cos.

    It is -(f_r w_rc + f_c w_cr), and 0 where the distance is clamped.
    """
    zero = xp.const(0.0)
    turn = _turned(xp)

    def item(t, distances, weights, factors, scratch):
        n = distances.shape[0]
        tile = scratch[t]
        first = t * BAND
        last = min(first + BAND, n)
        for start in range(0, n, BAND):
            stop = min(start + BAND, n)
            turn(weights, factors, tile, first, last, start, stop)
            for r in range(first, last):
                row, w = distances[r], weights[r]
                factor, base = factors[r], (r - first) * BAND - start
                for c in range(start, stop):
                    both = factor * w[np.uintp(c)] + tile[np.uintp(base + c)]
                    d = row[np.uintp(c)]
                    row[np.uintp(c)] = zero if d == zero else -both

    return item


def _first(xp):
    """The first column that holds a value (or is NaN) among those that are, or are not, of a class."""

    @xp.jit
    def first(row, codes, code, same, own, value):
        for j in range(row.shape[0]):
            if ((codes[j] == code) & (j != own)) == same:
                if (row[j] == value) | (row[j] != row[j]):
                    return j
        return -1

    return first


@itemwise
def triplet_hard(xp):
    """Row i: its farthest positive and nearest negative distance, the loss, and ±slope at those two."""
    zero, one, infinity = xp.consts(0.0, 1.0, np.inf)
    first = _first(xp)

    def item(i, distances, codes, margin, soft, scale, losses, weights, gradient):
        row = distances[i]
        code = codes[i]
        n = row.shape[0]
        positive, negative, largest = -infinity, -infinity, -infinity
        for j in range(n):
            d = row[np.uintp(j)]
            same = codes[np.uintp(j)] == code
            positive = xp.greatest(positive, d if same & (j != i) else -infinity)
            negative = xp.greatest(negative, -infinity if same else -d)
            largest = xp.greatest(largest, d)
        lonely, alone = positive == -infinity, negative == -infinity
        p = zero if lonely else positive
        q = largest if alone else -negative
        if soft:
            losses[i] = xp.softplus(p - q)
            slope = xp.sigmoid(p - q)
        else:
            loss = xp.maximum(p - q + margin, zero)
            losses[i] = loss
            slope = one if loss > zero else loss * zero
        if gradient:
            w = weights[i]
            for j in range(n):
                w[np.uintp(j)] = zero
            if not lonely:
                j = first(row, codes, code, True, i, p)
                w[j] += slope * scale
            # Without negatives any column may be the farthest: no class has the number -1.
            j = first(row, codes, -1 if alone else code, False, -1, q)
            if j >= 0:
                w[j] -= slope * scale

    return item


def _sorted(xp):
    """Sort keys with their places, stably, by merging from one pair of arrays to another and back."""

    @xp.jit
    def merge(keys, places, other_keys, other_places, low, middle, high):
        a, b = low, middle
        for k in range(low, high):
            if (a < middle) & ((b >= high) or (keys[a] <= keys[b])):
                other_keys[k], other_places[k] = keys[a], places[a]
                a += 1
            else:
                other_keys[k], other_places[k] = keys[b], places[b]
                b += 1

    @xp.jit
    def sort(keys, places, spare_keys, spare_places, n):
        for low in range(0, n, RUN):
            for k in range(low + 1, min(low + RUN, n)):
                key, place = keys[k], places[k]
                at = k
                while at > low and keys[at - 1] > key:
                    keys[at], places[at] = keys[at - 1], places[at - 1]
                    at -= 1
                keys[at], places[at] = key, place
        width = RUN
        while width < n:
            for low in range(0, n, 2 * width):
                middle, high = min(low + width, n), min(low + 2 * width, n)
                merge(keys, places, spare_keys, spare_places, low, middle, high)
            for k in range(n):
                keys[k], places[k] = spare_keys[k], spare_places[k]
            width *= 2

    return sort


@itemwise
def triplet_semihard(xp):
    """A few anchors, which share the scratch of their item.

    An anchor's positives are sorted. Each negative then belongs behind a number of them, found by bisection, and is a
    candidate for the last of these; the smallest candidate of a positive, or of the next that has any, is its
    semi-hard negative.
    """
    zero, infinity, nan = xp.consts(0.0, np.inf, np.nan)
    sort = _sorted(xp)

    def item(t, rows, distances, codes, members, starts, margin, scale, keys, places, losses, weights, gradient):
        n = distances.shape[0]
        key, other, place, which = keys[t, 0], keys[t, 1], places[t, 0], places[t, 1]
        for i in range(t * rows, min(t * rows + rows, n)):
            row, w = distances[i], weights[i if gradient else 0]
            code = codes[i]
            unordered = 0
            for j in range(n):
                unordered += 1 if row[np.uintp(j)] != row[np.uintp(j)] else 0
            if gradient:
                fill = nan if unordered else zero
                for j in range(n):
                    w[np.uintp(j)] = fill
            count = 0
            for m in range(starts[code], starts[code + 1]):
                j = members[m]
                if j != i:
                    key[count], place[count] = row[j], j
                    count += 1
            losses[i] = nan if unordered else zero
            if unordered or count == 0:
                continue
            sort(key, place, other, which, count)
            half = 1
            while 2 * half <= count:
                half *= 2
            for k in range(count, 2 * half):
                key[k] = infinity
            for k in range(count + 1):
                other[k], which[k] = infinity, -1
            farthest, far = -infinity, -1
            for j in range(n):
                if codes[j] != code:
                    d = row[j]
                    behind = 0
                    step = half
                    while step:
                        behind += step if key[behind + step - 1] < d else 0
                        step >>= 1
                    if (d < other[behind]) | (which[behind] < 0):
                        other[behind], which[behind] = d, j
                    if (d > farthest) | (far < 0):
                        farthest, far = d, j
            if far < 0:  # no negatives: the row's smallest distance, as a rule its own 0
                farthest, far = row[0], 0
                for j in range(1, n):
                    if row[j] < farthest:
                        farthest, far = row[j], j
            total = 0.0
            nearest, near = farthest, far
            for k in range(count - 1, -1, -1):
                if which[k + 1] >= 0:
                    nearest, near = other[k + 1], which[k + 1]
                loss = margin + (key[k] - nearest)
                if (loss > zero) | (loss != loss):
                    total += loss
                    if gradient:
                        w[place[k]] += scale
                        w[near] -= scale
            losses[i] = total

    return item


@itemwise
def lifted_negatives(xp):
    """Row i: the logarithm of the sum of exp(margin - distance) over its negatives, and each one's part of that sum."""
    zero, infinity = xp.consts(0.0, np.inf)

    def item(i, distances, codes, margin, sums, weights, gradient):
        row, w = distances[i], weights[i if gradient else 0]
        code = codes[i]
        n = row.shape[0]
        top = -infinity
        for j in range(n):
            x = margin - row[np.uintp(j)]
            top = xp.greatest(top, -infinity if codes[np.uintp(j)] == code else x)
        total = 0.0
        for start in range(0, n, CHUNK):
            part = zero
            for j in range(start, min(start + CHUNK, n)):
                e = xp.exp_nonpositive((margin - row[np.uintp(j)]) - top)
                e = zero if codes[np.uintp(j)] == code else e
                part += e
                if gradient:
                    w[np.uintp(j)] = e
            total += part
        sums[i] = top + xp.log(xp.type(total))
        if gradient:
            inverse = xp.type(1.0 / total)
            for j in range(n):
                w[np.uintp(j)] *= inverse

    return item


@itemwise
def lifted_pairs(xp):
    """Row i: the squares of its positive pairs, and what its distances add to the loss."""
    zero, two = xp.consts(0.0, 2.0)

    def item(i, distances, codes, members, starts, sums, scale, losses, weights, gradient):
        row, w = distances[i], weights[i if gradient else 0]
        code, own = codes[i], sums[i]
        total, pulled = 0.0, zero
        for m in range(starts[code], starts[code + 1]):
            j = members[m]
            if j != i:
                hinge = xp.maximum(own + xp.softplus(sums[j] - own) + row[j], zero)
                total += hinge * hinge
                if gradient:
                    w[j] = hinge * scale
                    pulled += two * hinge * scale * xp.sigmoid(own - sums[j])
        losses[i] = total
        if gradient:
            for j in range(row.shape[0]):
                v = w[np.uintp(j)]
                w[np.uintp(j)] = v if codes[np.uintp(j)] == code else -pulled * v

    return item


def _npairs(xp, target):
    """Softmax cross-entropy of row i of the scores, with targets that still have to be divided by their sum."""
    zero, one, infinity = xp.consts(0.0, 1.0, np.inf)

    def item(i, scores, targets, sums, scale, losses, slopes, gradient):
        row, g = scores[i], slopes[i if gradient else 0]
        n = row.shape[0]
        inverse = one / sums[i]
        top = -infinity
        for j in range(n):
            top = xp.greatest(top, row[np.uintp(j)])
        total, picked = 0.0, 0.0
        for start in range(0, n, CHUNK):
            part, some = zero, zero
            for j in range(start, min(start + CHUNK, n)):
                t = target(targets, i, j)
                z = row[np.uintp(j)] - top
                e = xp.exp_nonpositive(z)
                part += e
                some += zero if t == zero else t * z
                if gradient:
                    g[np.uintp(j)] = e
            total += part
            picked += some
        losses[i] = xp.log(xp.type(total)) - xp.type(picked) * inverse
        if gradient:
            probability = xp.type(1.0 / total)
            for j in range(n):
                t = target(targets, i, j)
                g[np.uintp(j)] = (g[np.uintp(j)] * probability - t * inverse) * scale

    return item


@itemwise
def npairs(xp):
    """Row i of the scores; the targets are the columns of its class, `targets` the classes' numbers."""
    zero, one = xp.consts(0.0, 1.0)

    @xp.jit
    def target(codes, i, j):
        return one if codes[np.uintp(j)] == codes[i] else zero

    return _npairs(xp, target)


@itemwise
def npairs_multilabel(xp):
    """Row i of the scores; `targets` is the matrix of how many labels two samples share."""

    @xp.jit
    def target(shared, i, j):
        return shared[np.uintp(i), np.uintp(j)]

    return _npairs(xp, target)


@itemwise
def circle(xp):
    """Row i: from distances d to similarities s, their two log-sum-exps, the loss, and its slope in each d."""
    zero, one, two, infinity, tiny = xp.consts(0.0, 1.0, 2.0, np.inf, -40.0)

    @xp.jit
    def positive(d, gamma, margin):
        return gamma * xp.maximum(d + margin, zero) * (d - margin)

    @xp.jit
    def negative(d, gamma, margin):
        return gamma * xp.maximum((one + margin) - d, zero) * ((one - margin) - d)

    def item(i, distances, codes, columns, without_diagonal, gamma, margin, losses, weights, gradient):
        row, w = distances[i], weights[i if gradient else 0]
        code = codes[i]
        n = row.shape[0]
        skipped = i if without_diagonal else -1
        top_p, top_n = -infinity, -infinity
        for j in range(n):
            d = row[np.uintp(j)]
            same = columns[np.uintp(j)] == code
            top_p = xp.greatest(top_p, positive(d, gamma, margin) if same & (j != skipped) else -infinity)
            top_n = xp.greatest(top_n, -infinity if same else negative(d, gamma, margin))
        total_p, total_n = 0.0, 0.0
        for start in range(0, n, CHUNK):
            part_p, part_n = zero, zero
            for j in range(start, min(start + CHUNK, n)):
                d = row[np.uintp(j)]
                same = columns[np.uintp(j)] == code
                s = positive(d, gamma, margin) - top_p if same else negative(d, gamma, margin) - top_n
                e = xp.exp_nonpositive(s)
                e = zero if same & (j == skipped) else e
                part_p += e if same else zero
                part_n += zero if same else e
                if gradient:
                    w[np.uintp(j)] = e
            total_p += part_p
            total_n += part_n
        z = (top_p + xp.log(xp.type(total_p))) + (top_n + xp.log(xp.type(total_n)))
        # Far out `softplus` may be 0 where exp is not yet, and rows with loss 0 do not count.
        losses[i] = xp.exp(z) if z < tiny else xp.softplus(z)
        if gradient:
            slope = xp.sigmoid(z) * gamma * two
            slope_p, slope_n = slope / xp.type(total_p), slope / xp.type(total_n)
            if z == -infinity:
                slope_p, slope_n = zero, zero
            for j in range(n):
                d = row[np.uintp(j)]
                same = columns[np.uintp(j)] == code
                by_p = slope_p * d if d + margin > zero else zero * d
                by_n = slope_n * (d - one) if (one + margin) - d > zero else zero * d
                w[np.uintp(j)] *= by_p if same else by_n

    return item
