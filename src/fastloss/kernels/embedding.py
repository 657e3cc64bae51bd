"""Losses of a batch of embeddings: matrix products are BLAS's, and these kernels are the scans between them.

One item is one anchor, a row of a B × B matrix, or a band of rows. A row's scans are vector loops without branches:
which columns count is a selection by the classes' numbers. Everything a row finds (its loss, what each of its distances
adds to the loss) stays in that row. What flows from distances to embeddings needs the sum of a matrix and its
transpose, which `flow_euclidean` and `flow_cosine` form by bands, in the memory of the distances.

Indices are unsigned in vector loops, because Python's wrap-around for negative ones keeps them scalar. A maximum over
some columns puts the lowest finite number in place of the others: with -inf, LLVM would make a branch of the selection,
and the loop would be 14 times slower.

Loops over columns are `xp.span`'s and its kin, so that a team of threads may share an item; on the CPU one thread has
it. The matrices and the scratch that an item writes are its own.
"""

from __future__ import annotations

import numpy as np

from fastloss.kernels.definition import itemwise

BAND = 32
"""Rows of a band: a square tile of 32 × 32 numbers fits the first-level cache, and turns there."""

NEAR = 1.0 / 64
"""Squared distances below this part of the squared norms are computed anew, from the difference of the embeddings:
a Gram matrix leaves 1/NEAR rounding errors there, and none of the digits of a far smaller distance."""

FEW = 20
"""The members of a class whose positives look through all negatives one by one, 0.3 µs each in a row of 1000. For more
of them the negatives are brought into cells: 3 µs, where sorting takes 60 and sorting within the cells takes 9."""

CROWD = 16
"""How many negatives may be in one cell; with more of them the whole row is sorted."""

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
        for j in xp.span(n):
            both = own + norms[np.uintp(j)]
            d = apart(both, row[np.uintp(j)])
            close += 1 if d < near * both else 0
            row[np.uintp(j)] = zero if d < zero else d
        if close > (1 if xp.mine(i) else 0):  # the diagonal is one
            for j in xp.span(n):
                if row[j] < near * (own + norms[j]):
                    y = embeddings[j]
                    total = zero
                    for k in range(size):
                        e = x[np.uintp(k)] - y[np.uintp(k)]
                        total += e * e
                    row[j] = total
        if not squared:
            for j in xp.span(n):
                row[np.uintp(j)] = xp.sqrt(row[np.uintp(j)])
        if xp.mine(i) and row[i] == row[i]:
            row[i] = zero

    return item


def _turned(xp):
    """A tile of the transpose, each of its columns times the column's factor.

    A team, whose band is one row, finds in `scratch` what it would be for all rows.
    """

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
        rows, width = (1, n) if xp.shared else (BAND, BAND)
        first = t * rows
        last = min(first + rows, n)
        for start in range(0, n, width):
            stop = min(start + width, n)
            if not xp.shared:
                turn(weights, factors, tile, first, last, start, stop)
            for r in range(first, last):
                row, w = distances[r], weights[r]
                factor, own, base = factors[r], norms[r], (r - first) * BAND - start
                close = 0
                for c in xp.between(start, stop):
                    d = row[np.uintp(c)]
                    d = d if squared else d * d
                    both = factor * w[np.uintp(c)] + tile[np.uintp(base + c)]
                    close += 1 if (d < near * (own + norms[np.uintp(c)])) & (both != zero) else 0
                if not xp.any_of(close):
                    for c in xp.between(start, stop):
                        both = factor * w[np.uintp(c)] + tile[np.uintp(base + c)]
                        row[np.uintp(c)] = -flow(both, row[np.uintp(c)], squared)
                else:
                    for c in range(start, stop):
                        v = flow(factor * w[c] + tile[base + c], row[c], squared)
                        d = row[c] if squared else row[c] * row[c]
                        if (d < near * (own + norms[c])) & (v != zero):
                            x, y, g = embeddings[r], embeddings[c], gradient[r]
                            for k in xp.span(size):
                                g[np.uintp(k)] += v * (x[np.uintp(k)] - y[np.uintp(k)])
                    xp.meet()
                    for c in xp.between(start, stop):
                        v = flow(factor * w[c] + tile[base + c], row[c], squared)
                        d = row[c] if squared else row[c] * row[c]
                        row[c] = zero if d < near * (own + norms[c]) else -v
        for r in range(first, last):
            row = distances[r]
            if xp.mine(r):
                row[r] = zero
            total = xp.wide(0)
            for start in range(0, n, xp.stride):
                part = zero
                for c in xp.between(start, min(start + xp.stride, n)):
                    part += row[np.uintp(c)]
                total += part
            total = xp.total(total)
            if xp.mine(r):
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
        rows, width = (1, n) if xp.shared else (BAND, BAND)
        first = t * rows
        last = min(first + rows, n)
        for start in range(0, n, width):
            stop = min(start + width, n)
            if not xp.shared:
                turn(weights, factors, tile, first, last, start, stop)
            for r in range(first, last):
                row, w = distances[r], weights[r]
                factor, base = factors[r], (r - first) * BAND - start
                for c in xp.between(start, stop):
                    both = factor * w[np.uintp(c)] + tile[np.uintp(base + c)]
                    d = row[np.uintp(c)]
                    row[np.uintp(c)] = zero if d == zero else -both

    return item


def _first(xp):
    """The first column that holds a value or NaN."""

    @xp.jit
    def first(row, value):
        n = np.int32(row.shape[0])
        at = n
        for j in xp.span(row.shape[0]):
            d = row[np.uintp(j)]
            at = min(at, np.int32(j) if (d == value) | (d != d) else n)
        return min(xp.least(at), n - 1)

    return first


def _plus_margin(xp):
    # A function, because a loop may reassociate, and equal distances are to differ by 0.
    @xp.jit
    def plus_margin(difference, margin):
        return difference + margin

    return plus_margin


@itemwise
def triplet_hard(xp):
    """Row i: its farthest positive and nearest negative distance, the loss, and ±slope at those two."""
    zero, one, infinity = xp.consts(0.0, 1.0, np.inf)
    low = xp.const(np.finfo(xp.dtype).min)
    first, plus_margin = _first(xp), _plus_margin(xp)

    def item(i, distances, codes, margin, soft, scale, losses, weights, gradient):
        row, code = distances[i], codes[i]
        n = row.shape[0]
        own = row[i]
        if xp.mine(i):
            row[i] = -infinity  # no positive of itself
        positive, negative, largest = low, low, low
        for j in xp.span(n):
            positive = xp.greatest(positive, xp.where(codes[np.uintp(j)] == code, row[np.uintp(j)], low))
        if xp.mine(i):
            row[i] = own
        for j in xp.span(n):
            d = row[np.uintp(j)]
            negative = xp.greatest(negative, xp.where(codes[np.uintp(j)] == code, low, -d))
            largest = xp.greatest(largest, d)
        positive, negative, largest = xp.largest(positive), xp.largest(negative), xp.largest(largest)
        lonely, alone = positive == low, negative == low
        p = zero if lonely else positive
        q = largest if alone else -negative
        if soft:
            losses[i] = xp.softplus(p - q)
            slope = xp.sigmoid(p - q)
        else:
            loss = xp.maximum(plus_margin(p - q, margin), zero)
            losses[i] = loss
            slope = one if loss > zero else loss * zero
        if gradient:
            w = weights[i]
            # The row of slopes serves as scratch until both columns are known.
            for j in xp.span(n):
                w[np.uintp(j)] = xp.where(codes[np.uintp(j)] == code, row[np.uintp(j)], low)
            if xp.mine(i):
                w[i] = low
            at = first(w, p)
            for j in xp.span(n):
                w[np.uintp(j)] = xp.where(codes[np.uintp(j)] == code, low, row[np.uintp(j)])
            to = first(row if alone else w, q)
            for j in xp.span(n):
                w[np.uintp(j)] = zero
            if not lonely and xp.mine(at):
                w[at] += slope * scale
            if xp.mine(to):
                w[to] -= slope * scale

    return item


def _merge(xp):
    """A stable sort of keys with their places: runs are merged into spare arrays and copied back."""

    @xp.jit
    def insert(keys, places, start, stop):
        for k in range(start + 1, stop):
            key, place = keys[k], places[k]
            at = k
            while at > start and keys[at - 1] > key:
                keys[at], places[at] = keys[at - 1], places[at - 1]
                at -= 1
            keys[at], places[at] = key, place

    @xp.jit
    def merge(keys, places, spare_keys, spare_places, n):
        for start in range(0, n, RUN):
            insert(keys, places, start, min(start + RUN, n))
        width = RUN
        while width < n:
            for start in range(0, n, 2 * width):
                middle, stop = min(start + width, n), min(start + 2 * width, n)
                a, b = start, middle
                for k in range(start, stop):
                    if a < middle and (b >= stop or keys[a] <= keys[b]):
                        spare_keys[k], spare_places[k] = keys[a], places[a]
                        a += 1
                    else:
                        spare_keys[k], spare_places[k] = keys[b], places[b]
                        b += 1
            for k in range(n):
                keys[np.uintp(k)], places[np.uintp(k)] = spare_keys[np.uintp(k)], spare_places[np.uintp(k)]
            width *= 2

    return merge


@itemwise
def triplet_semihard(xp):
    """A few anchors, which share the scratch of their item.

    Of few positives each one looks through the row for its semi-hard negative; for many, unless a team looks, the
    negatives are brought into the order of cells, or sorted.
    """
    zero, infinity, nan = xp.consts(0.0, np.inf, np.nan)
    low = xp.const(np.finfo(xp.dtype).min)
    first, merge, plus_margin = _first(xp), _merge(xp), _plus_margin(xp)

    @xp.jit
    def beyond(negatives, distance):
        """The smallest negative farther than this of those a thread has, its sign changed, or the lowest number."""
        found = low
        for j in xp.span(negatives.shape[0]):
            d = negatives[np.uintp(j)]
            found = xp.greatest(found, xp.where(d > distance, -d, low))
        return found

    @xp.jit
    def cell(distance, smallest, scale, cells):
        t = (distance - smallest) * scale
        return np.int64(xp.where(t < cells, t, cells)) if t > zero else 0

    @xp.jit
    def arrange(keys, places, spare_keys, spare_places, bounds, count):
        """Bring keys into the order of cells of equal width, whose bounds stay; within cells as they were.

        Where many crowd into a cell, sort them all: then no distribution of distances costs more than that.
        """
        top, bottom = low, low
        for k in range(count):
            top = xp.greatest(top, keys[np.uintp(k)])
            bottom = xp.greatest(bottom, -keys[np.uintp(k)])
        smallest, width = -bottom, top + bottom
        scale = xp.type(count) / width if width > zero else zero
        scale = scale if scale < infinity else zero
        for c in range(count + 3):
            bounds[np.uintp(c)] = 0
        crowd = 0
        for k in range(count):
            into = np.uintp(cell(keys[np.uintp(k)], smallest, scale, xp.type(count)) + 2)
            bounds[into] += 1
            crowd = max(crowd, int(bounds[into]))
        total = 0
        for c in range(count + 3):
            total += bounds[np.uintp(c)]
            bounds[np.uintp(c)] = total
        for k in range(count):
            into = np.uintp(cell(keys[np.uintp(k)], smallest, scale, xp.type(count)) + 1)
            at = np.uintp(bounds[into])
            bounds[into] += 1
            spare_keys[at], spare_places[at] = keys[np.uintp(k)], places[np.uintp(k)]
        for k in range(count):
            keys[np.uintp(k)], places[np.uintp(k)] = spare_keys[np.uintp(k)], spare_places[np.uintp(k)]
        ordered = crowd > CROWD
        if ordered:
            merge(keys, places, spare_keys, spare_places, count)
        return smallest, scale, ordered

    @xp.jit
    def look_up(keys, bounds, smallest, scale, ordered, count, distance):
        """The smallest key above this distance, the first of several; -1 if there is none."""
        cells = xp.type(count)
        c = cell(distance, smallest, scale, cells)
        at, end = np.int64(bounds[np.uintp(c)]), np.int64(bounds[np.uintp(c + 1)])
        if ordered:
            while at < end:
                middle = (at + end) >> 1
                if keys[np.uintp(middle)] <= distance:
                    at = middle + 1
                else:
                    end = middle
            return at if at < count else -1
        found, least = -1, infinity
        for k in range(at, end):
            key = keys[np.uintp(k)]
            better = (key > distance) & (key < least)
            found, least = k if better else found, xp.where(better, key, least)
        if found < 0 and end < count:  # all of the next cell that has any are beyond
            last = np.int64(bounds[np.uintp(cell(keys[np.uintp(end)], smallest, scale, cells) + 1)])
            for k in range(end, last):
                key = keys[np.uintp(k)]
                found, least = k if key < least else found, xp.where(key < least, key, least)
        return found

    if xp.shared:  # a team looks through all negatives faster than one thread sorts them

        @xp.jit
        def arrange(keys, places, spare_keys, spare_places, bounds, count):
            return zero, zero, count < 0

        @xp.jit
        def look_up(keys, bounds, smallest, scale, ordered, count, distance):
            return -1

    def item(t, rows, distances, codes, members, starts, margin, scale, lists, keys, places, losses, weights, gradient):
        n = distances.shape[0]
        negatives = lists[t]
        bounds, place, other = places[t, 0], places[t, 1], places[t, 2]
        key, spare = keys[t, 0], keys[t, 1]
        for i in range(t * rows, min(t * rows + rows, n)):
            row, w, code = distances[i], weights[i if gradient else 0], codes[i]
            smallest, farthest = low, low
            for j in xp.span(n):
                d = row[np.uintp(j)]
                d_or_low = xp.where(codes[np.uintp(j)] == code, low, d)
                negatives[np.uintp(j)] = d_or_low
                farthest = xp.greatest(farthest, d_or_low)
                smallest = xp.greatest(smallest, -d)
            smallest, farthest = xp.largest(smallest), xp.largest(farthest)
            unordered = smallest != smallest
            if gradient:
                fill = nan if unordered else zero
                for j in xp.span(n):
                    w[np.uintp(j)] = fill
            losses[i] = nan if unordered else zero
            begin, end = starts[code], starts[code + 1]
            if unordered or end - begin < 2:
                continue
            if farthest == low:  # no negatives: the row's smallest distance, as a rule its own 0
                farthest = -smallest
                far = int(first(row, farthest))
            else:
                far = int(first(negatives, farthest))
            many = end - begin > FEW and not xp.shared
            count, scale_of_cells, ordered = 0, zero, False
            if many:
                for j in range(n):  # no branch depends on the classes: half of them might be mispredicted
                    key[np.uintp(count)], place[np.uintp(count)] = row[np.uintp(j)], j
                    count += 1 if codes[np.uintp(j)] != code else 0
                smallest, scale_of_cells, ordered = arrange(key, place, spare, other, bounds, count)
            total = xp.wide(0)
            for m in range(begin, end):
                j = int(members[m])
                if j == i:
                    continue
                positive, negative, to = row[j], farthest, far
                if many:
                    found = look_up(key, bounds, smallest, scale_of_cells, ordered, count, positive)
                    if found >= 0:
                        negative, to = key[found], int(place[found])
                else:
                    nearest = xp.largest(beyond(negatives, positive))
                    negative = farthest if nearest == low else -nearest
                loss = plus_margin(positive - negative, margin)
                if (loss > zero) | (loss != loss):
                    total += loss
                    if gradient:
                        if not many and negative != farthest:
                            to = int(first(negatives, negative))
                        if xp.mine(j):
                            w[j] += scale
                        if xp.mine(to):
                            w[to] -= scale
            losses[i] = total

    return item


@itemwise
def lifted_negatives(xp):
    """Row i: the logarithm of the sum of exp(margin - distance) over its negatives, and each one's part of that sum."""
    zero = xp.const(0.0)
    low = xp.const(np.finfo(xp.dtype).min)

    def item(i, distances, codes, margin, sums, weights, gradient):
        row, w, code = distances[i], weights[i if gradient else 0], codes[i]
        n = row.shape[0]
        top = low
        for j in xp.span(n):
            top = xp.greatest(top, xp.where(codes[np.uintp(j)] == code, low, margin - row[np.uintp(j)]))
        top = xp.largest(top)
        total = xp.wide(0)
        for start in range(0, n, xp.stride):
            part = zero
            for j in xp.between(start, min(start + xp.stride, n)):
                e = xp.exp_nonpositive((margin - row[np.uintp(j)]) - top)
                e = xp.where(codes[np.uintp(j)] == code, zero, e)
                # Before the sum: after it, LLVM orders the sum in one way alone and in another among threads.
                if gradient:
                    w[np.uintp(j)] = e
                part += e
            total += part
        total = xp.total(total)
        sums[i] = top + xp.log(xp.type(total))
        if gradient:
            inverse = xp.type(xp.wide(1) / total)
            for j in xp.span(n):
                w[np.uintp(j)] *= inverse

    return item


@itemwise
def lifted_pairs(xp):
    """Row i: the squares of its positive pairs, and what its distances add to the loss."""
    zero, two, infinity = xp.consts(0.0, 2.0, np.inf)

    def item(i, distances, codes, sums, scale, losses, weights, gradient):
        row, w, code, own = distances[i], weights[i if gradient else 0], codes[i], sums[i]
        n = row.shape[0]
        # One class alone: 0, or NaN where there is one. The CPU, which knows how many classes there are, never asks.
        if xp.shared and own == -infinity:
            lost = zero
            for j in xp.span(n):
                d = row[np.uintp(j)]
                nothing = zero if d == d else d
                lost += nothing
                if gradient:
                    w[np.uintp(j)] = nothing
            losses[i] = xp.total(lost)
            return
        zero_or_nan = row[i]
        if xp.mine(i):
            row[i] = -infinity  # no pair with itself
        total, pulled = xp.wide(0), xp.wide(0)
        for start in range(0, n, xp.stride):
            part, some = zero, zero
            for j in xp.between(start, min(start + xp.stride, n)):
                more = sums[np.uintp(j)] - own
                hinge = xp.maximum(own + xp.softplus(more) + row[np.uintp(j)], zero)
                hinge = xp.where(codes[np.uintp(j)] == code, hinge, zero)
                part += hinge * hinge
                if gradient:
                    some += hinge * xp.sigmoid(-more)
                    w[np.uintp(j)] = xp.where(codes[np.uintp(j)] == code, hinge, w[np.uintp(j)])
            total += part
            pulled += some
        if xp.mine(i):
            row[i] = zero_or_nan
        total, pulled = xp.total(total), xp.total(pulled)
        losses[i] = total
        if gradient:
            by_negative = -two * scale * xp.type(pulled)
            for j in xp.span(n):
                w[np.uintp(j)] *= xp.where(codes[np.uintp(j)] == code, scale, by_negative)

    return item


def _npairs(xp, target):
    """Softmax cross-entropy of row i of the scores, with targets that still have to be divided by their sum."""
    zero, one, infinity = xp.consts(0.0, 1.0, np.inf)

    def item(i, scores, targets, sums, scale, losses, slopes, gradient):
        row, g = scores[i], slopes[i if gradient else 0]
        n = row.shape[0]
        inverse = one / sums[i]
        top = -infinity
        for j in xp.span(n):
            top = xp.greatest(top, row[np.uintp(j)])
        top = xp.largest(top)
        total, picked = xp.wide(0), xp.wide(0)
        for start in range(0, n, xp.stride):
            part, some = zero, zero
            for j in xp.between(start, min(start + xp.stride, n)):
                t = target(targets, i, j)
                z = row[np.uintp(j)] - top
                e = xp.exp_nonpositive(z)
                part += e
                some += zero if t == zero else t * z
                if gradient:
                    g[np.uintp(j)] = e
            total += part
            picked += some
        total, picked = xp.total(total), xp.total(picked)
        losses[i] = xp.log(xp.type(total)) - xp.type(picked) * inverse
        if gradient:
            probability = xp.type(xp.wide(1) / total)
            for j in xp.span(n):
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
    low = xp.const(np.finfo(xp.dtype).min)

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
        skipped = np.int32(i if without_diagonal else -1)
        top_p, top_n = low, low
        for j in xp.span(n):
            d = row[np.uintp(j)]
            same = columns[np.uintp(j)] == code
            top_p = xp.greatest(top_p, xp.where(same & (np.int32(j) != skipped), positive(d, gamma, margin), low))
            top_n = xp.greatest(top_n, xp.where(same, low, negative(d, gamma, margin)))
        top_p, top_n = xp.largest(top_p), xp.largest(top_n)
        total_p, total_n = xp.wide(0), xp.wide(0)
        for start in range(0, n, xp.stride):
            part_p, part_n = zero, zero
            for j in xp.between(start, min(start + xp.stride, n)):
                d = row[np.uintp(j)]
                same = columns[np.uintp(j)] == code
                s = xp.where(same, positive(d, gamma, margin) - top_p, negative(d, gamma, margin) - top_n)
                e = xp.where(same & (np.int32(j) == skipped), zero, xp.exp_nonpositive(s))
                part_p += xp.where(same, e, zero)
                part_n += xp.where(same, zero, e)
                if gradient:
                    w[np.uintp(j)] = e
            total_p += part_p
            total_n += part_n
        total_p, total_n = xp.total(total_p), xp.total(total_n)
        z = (top_p + xp.log(xp.type(total_p))) + (top_n + xp.log(xp.type(total_n)))
        # Far out `softplus` may be 0 where exp is not yet, and rows with loss 0 do not count.
        losses[i] = xp.exp(z) if z < tiny else xp.softplus(z)
        if gradient:
            slope = xp.sigmoid(z) * gamma * two
            slope_p, slope_n = slope / xp.type(total_p), slope / xp.type(total_n)
            if z == -infinity:
                slope_p, slope_n = zero, zero
            for j in xp.span(n):
                d = row[np.uintp(j)]
                same = columns[np.uintp(j)] == code
                by_p = xp.where(d + margin > zero, slope_p * d, zero * d)
                by_n = xp.where((one + margin) - d > zero, slope_n * (d - one), zero * d)
                w[np.uintp(j)] *= xp.where(same, by_p, by_n)

    return item
