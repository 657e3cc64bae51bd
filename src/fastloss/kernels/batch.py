"""What losses of batches need besides their kernels where NumPy is not at hand, as it is not on a GPU.

Itemwise kernels as the others, for the toolbox of a team (`fastloss.engine.cuda.drivers.team`): between them nothing of
the host looks at data.
"""

from __future__ import annotations

import math

import numpy as np

from fastloss.kernels.definition import itemwise

_SMALLEST_SQUARE = 1e-12
"""As `fastloss.losses.pairwise` has it."""


# ---- classes --------------------------------------------------------------------------------------------------------


@itemwise
def classes(xp, code):
    """Sample i: the first of its class, which is the class's number; how many are before it, and how many others."""
    read = xp.number(code)

    def item(i, labels, codes, ranks, others):
        own = read(labels, i)
        n = labels.shape[0]
        first, before, members = np.int32(i), np.int32(0), np.int32(0)
        for j in xp.span(n):
            if read(labels, j) == own and j != i:
                members += np.int32(1)
                if j < i:
                    first = min(first, np.int32(j))
                    before += np.int32(1)
        codes[i] = xp.least(first)
        ranks[i] = xp.count(before)
        others[i] = xp.count(members)

    return item


@itemwise
def members(xp):
    """Class i begins at ``starts[i]``, and sample i has its place among the members of its class."""

    def item(i, codes, ranks, found, starts):
        n = codes.shape[0]
        own = codes[min(i, n - 1)]
        below, before = np.int32(0), np.int32(0)
        for j in xp.span(n):
            below += np.int32(1) if codes[j] < i else np.int32(0)
            before += np.int32(1) if codes[j] < own else np.int32(0)
        below, before = xp.count(below), xp.count(before)
        starts[i] = below
        if i < n:
            found[before + ranks[i]] = i

    return item


# ---- distances ------------------------------------------------------------------------------------------------------


@itemwise
def unit(xp):
    """Row i by its norm, and that norm's square."""
    zero, one, least = xp.consts(0.0, 1.0, _SMALLEST_SQUARE)

    def item(i, rows, units, squares):
        n = rows.shape[1]
        square = zero
        for k in xp.span(n):
            x = rows[i, k]
            square += x * x
        square = xp.total(square)
        inverse = one / xp.sqrt(xp.maximum(square, least))
        for k in xp.span(n):
            units[i, k] = rows[i, k] * inverse
        squares[i] = square

    return item


@itemwise
def across(xp):
    """The gradient in row i from that in the row by its norm, in place."""
    zero, one, least = xp.consts(0.0, 1.0, _SMALLEST_SQUARE)

    def item(i, units, squares, gradient):
        n = units.shape[1]
        along = zero
        for k in xp.span(n):
            along += units[i, k] * gradient[i, k]
        along = xp.total(along)
        # A norm that was too small to divide by does not depend on the embedding.
        along = zero if squares[i] < least else along
        inverse = one / xp.sqrt(xp.maximum(squares[i], least))
        for k in xp.span(n):
            gradient[i, k] = (gradient[i, k] - along * units[i, k]) * inverse

    return item


@itemwise
def cosine(xp):
    """Row i of a Gram matrix becomes distances ``max(1 - cos, 0)``, in place."""
    zero, one = xp.consts(0.0, 1.0)

    def item(i, gram):
        row = gram[i]
        for j in xp.span(row.shape[0]):
            row[j] = xp.maximum(one - row[j], zero)

    return item


@itemwise
def turned(xp):
    """Row i of the transpose of the weights, each times the factor of its row."""

    def item(i, weights, factors, transpose):
        for j in xp.span(weights.shape[0]):
            transpose[i, j] = factors[j] * weights[j, i]

    return item


@itemwise
def row_sums(xp):
    """The sum of row i."""
    zero = xp.const(0.0)

    def item(i, matrix, sums):
        total = zero
        for j in xp.span(matrix.shape[1]):
            total += matrix[i, j]
        sums[i] = xp.total(total)

    return item


@itemwise
def plus(xp):
    """Row i of a matrix, added to another's."""

    def item(i, matrix, destination):
        for j in xp.span(matrix.shape[1]):
            destination[i, j] += matrix[i, j]

    return item


@itemwise
def quotient(xp):
    """Number i, or the only one, by a divisor that is at least 1."""
    one = xp.const(1.0)

    def item(i, numbers, divisor, quotients):
        quotients[i] = numbers[i if numbers.shape[0] > 1 else 0] / xp.maximum(divisor[0], one)

    return item


# ---- weighted kappa -------------------------------------------------------------------------------------------------


def _weight(xp, linear):
    """The weight of predicting a class for a sample of another, by their distance."""

    @xp.jit
    def weight(distance):
        return abs(distance) if linear else distance * distance

    return weight


@itemwise
def mean_class(xp, code):
    """The mean class of the targets of row i."""
    load, zero = xp.load(code), xp.const(0.0)

    def item(i, y, labels, columns):
        total = zero
        for k in xp.span(columns):
            total += load(y, i * columns + k) * xp.type(k)
        labels[i] = xp.total(total)

    return item


def _kappa_sums(linear):
    def kappa_sums(xp, code):
        """Every so manieth element from i on, all of one class: sums of targets, predictions, and what is seen amiss.

        As many items as numbers in a part of `sums`, a multiple of the number of classes.
        """
        load, zero, weight = xp.load(code), xp.const(0.0), _weight(xp, linear)

        def item(i, y, p, labels, columns, sums):
            step, n = sums.shape[1], p.shape[0]
            own = xp.type(i % columns)
            target, target_lost, mass, mass_lost, seen, seen_lost = zero, zero, zero, zero, zero, zero
            for k in range(i, n, step):
                target, target_lost = xp.accumulate(target, target_lost, load(y, k))
                mass, mass_lost = xp.accumulate(mass, mass_lost, p[k])
                seen, seen_lost = xp.accumulate(seen, seen_lost, weight(labels[k // columns] - own) * p[k])
            sums[0, i] = xp.whole(target, target_lost)
            sums[1, i] = xp.whole(mass, mass_lost)
            sums[2, i] = xp.whole(seen, seen_lost)

        return item

    return itemwise(kappa_sums)


kappa_sums_linear, kappa_sums_quadratic = _kappa_sums(True), _kappa_sums(False)


def _kappa(linear):
    def kappa(xp):
        """The loss, from those sums: all in float64, since nothing here depends on the size of the batch.

        `known` has room for the targets of each class. A slope is a factor, the last of `factors`, times the weight,
        less a number that its class has there.
        """
        weight = _weight(xp, linear)

        def item(i, sums, columns, samples, epsilon, loss, known, factors):
            expectations = known[columns:]
            parts = sums.shape[1] // columns
            seen = 0.0
            for j in range(columns):
                target = 0.0
                for k in xp.span(parts):
                    target += sums[0, k * columns + j]
                    seen += sums[2, k * columns + j]
                target = xp.final(target)
                if xp.mine(j):
                    known[j] = target
            xp.meet()
            seen, chance = xp.final(seen), 0.0
            for j in xp.span(columns):
                expected = 0.0
                for k in range(columns):
                    expected += known[k] * weight(np.float64(k - j))
                expected /= samples
                expectations[j] = expected
                mass = 0.0
                for k in range(parts):
                    mass += sums[1, k * columns + j]
                chance += expected * mass
            chance = xp.final(chance)
            ratio = seen / chance if chance != 0 else 0.0
            loss[0] = math.log(ratio + epsilon) if ratio + epsilon != 0 else -np.inf
            slope = 1.0 / ((ratio + epsilon) * chance) if chance != 0 else 0.0
            for j in xp.span(columns):
                factors[j] = slope * ratio * expectations[j]
            factors[columns] = slope

        return item

    return itemwise(kappa)


kappa_linear, kappa_quadratic = _kappa(True), _kappa(False)


def _kappa_slopes(linear):
    def kappa_slopes(xp):
        """Slope i in the predictions."""
        weight = _weight(xp, linear)

        def item(i, labels, columns, factors, slopes):
            j = i % columns
            slopes[i] = factors[columns] * weight(labels[i // columns] - xp.type(j)) - factors[j]

        return item

    return itemwise(kappa_slopes)


kappa_slopes_linear, kappa_slopes_quadratic = _kappa_slopes(True), _kappa_slopes(False)


# ---- label sequences ------------------------------------------------------------------------------------------------


@itemwise
def sequences(xp, y_code, frames_code, labels_code):
    """Labels and lengths of sequence i as `fastloss.kernels.ctc` wants them, and whether it is to be computed.

    What is masked is 0, what has labels or lengths that are none 2: then its number, or its label's, is told.
    """
    label_of, frames_of, count_of = xp.number(y_code), xp.number(frames_code), xp.number(labels_code)

    @xp.jit
    def checked(x, limit):
        """X as an integer from 0 to below the limit, or -1; not through a conversion of whatever it is."""
        near = np.int64(x) if x >= 0 and x < limit else np.int64(-1)
        return near if near == x else np.int64(-1)

    def item(
        i, y, frames_given, labels_given, mask, has_frames, has_labels, masked, columns, frames, classes, blank,
        labels, steps, counts, status, bad, label_slot, frames_slot, count_slot,
    ):  # fmt: skip
        at = i * columns
        valid = mask[i] != 0 if masked else True
        most, count = np.int64(frames), np.int64(0)
        if has_frames and valid:
            most = checked(frames_of(frames_given, i), frames + 1)
            if most < 0:
                bad[frames_slot] = i
        if has_labels and valid:
            count = checked(count_of(labels_given, i), columns + 1)
            if count < 0:
                bad[count_slot] = i
        if not has_labels:
            for k in range(columns):
                count += 0 if label_of(y, at + k) == blank else 1
        whole = valid and most >= 0 and count >= 0
        for k in range(columns):
            label = np.int64(0)
            if whole and k < count:
                label = checked(label_of(y, at + k), classes)
                if label < 0:
                    bad[label_slot] = at + k
                    whole = False
                    label = np.int64(0)
            labels[at + k] = label
        steps[i] = most if whole else 0
        counts[i] = count if whole else 0
        status[i] = 1 if whole else (2 if valid else 0)

    return item


# ---- classes of one-hot targets -------------------------------------------------------------------------------------


@itemwise
def hot_class(xp, code):
    """The class of row i of one-hot targets; NaN, and its number is told, if the row is not one-hot."""
    load = xp.load(code)
    zero, one, nan = xp.consts(0.0, 1.0, np.nan)

    def item(i, y, classes, columns, bad, slot):
        hot, place, total = np.int32(0), np.int32(0), zero
        for k in xp.span(columns):
            t = load(y, i * columns + k)
            if t != zero:
                hot += np.int32(1)
                place += np.int32(k)  # that of the only one, if it is one
                total += t
        hot, place, total = xp.count(hot), xp.count(place), xp.total(total)
        if hot == 1 and total == one:
            classes[i] = np.float64(place)
        else:
            classes[i] = nan
            bad[slot] = i

    return item
