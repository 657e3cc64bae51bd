"""Connectionist temporal classification: all alignments of a label sequence with the frames of an input sequence."""

from __future__ import annotations

import math

import numpy as np

from fastloss.kernels.definition import itemwise

TABLE_BYTES = 1 << 20
"""The largest table of all frames: what stays in a core's cache, and in the heap from one sequence to the next.

4 sequences of 2000 frames and 1000 labels in float32 take 77 ms with tables of 40 MB each and 23 ms in segments.
"""


@itemwise
def ctc(xp, logits_code, gradient_code):
    """The forward and backward recursions of one sequence (Graves et al. 2006), softmax and gradient included.

    With q_t(c) = exp(z_tc - max z_t), a path through the states "blank before label k" and "label k" has the weight
    Π q_t, A(state) is the weight of all paths that reach a state at frame t, B(state) that of all ways on from there,
    and Z = A·B summed over the states of any one frame. The loss is Σ log Σ_c q_t(c) - log Z, and its gradient with
    respect to z_tc is softmax(z_t)_c minus the share A·B/Z of the states that emit c.

    **Numbers.** A, B and Z are pairs m·2^n, each state with an n of its own (`xp.exp_parts` and its kin). A frame of
    the forward recursion costs 0.9-1.1 ns for a label and its blank in float32, 1.9-2.1 in float64 (41 to 512 labels,
    AVX2 code, the emissions' exponentials included). The alternatives were measured beside it:

    * Log space takes 1.8-2.1 and 6.0-6.6 ns, for an exponential a term, and log A ≈ -6000 leaves float32 three
      decimals: with 1000 labels in 2000 frames, PyTorch's float32 gradient is off by 0.005 to 0.05, this one by 3e-6.
    * Linear space with one scale a frame takes 0.23-0.46 and 0.42-1.0 ns, but what is improbable now may be all that
      can still reach the end, and states 2^-126 (2^-1022) below a frame's best are lost, silently: 200 labels in 2000
      frames of equal logits give 7018 instead of 7279 in float32, in 4000 frames 15299 instead of 15319 in float64.

    n is -inf where there is no path (m is then any finite number), and a float, so that even logits 1e30 apart give
    what log space would.

    **Memory.** A frame is a row of columns, of which column k has the blank before label k and label k; the last one
    has the final blank and no label. Its parts ``[blank m | label m | blank n | label n | label's z - max]`` are
    contiguous, so that transitions are vector loads, one of them shifted by one column. Columns come in blocks of a
    cache line, without scalar leftovers. Only the blocks that can be reached from the start and from which the end can
    be reached are computed: with twice as many frames as labels that is half of them. The rest of a row is never
    written, so its neighbours' reads are met by *empty* columns: one on the left of the row's blocks (their label
    part), and a whole block where the next frame's begin or end further out.

    Without a gradient two rows suffice. Otherwise A is kept for all frames where that takes no more than `TABLE_BYTES`;
    beyond, only for each √T-th, and the frames between are computed again, √T at a time.

    **Storage.** Logits and gradient are stored in any format, and the gradient may overwrite the logits: a frame's is
    put together in a row of its own and written once, when nothing needs the frame's logits any more. Where its memory
    is free until then and takes q_t unrounded (`keeps`), q_t waits there; else it is computed again: value and gradient
    of 5000 classes take 3.2 instead of 2.6 ms then.

    **Teams.** Where several threads have a sequence, they share columns and classes (`xp.span`), and meet once a frame
    and direction, when neighbours' columns are read next. What they need of memory lies one after the other in
    `workspace`, which is as large as `room` says; a sequence that is ``valid`` 2 has the loss NaN.
    """
    load, load_kept, store = xp.load(logits_code), xp.load(gradient_code), xp.store(gradient_code)
    lanes = 64 // xp.dtype.itemsize
    zero, one, empty, nan = xp.consts(0.0, 1.0, -np.inf, np.nan)
    ln2 = math.log(2.0)
    large = 2.0**512

    @xp.jit
    def larger(a, b):
        return a if a > b else b

    @xp.jit
    def clear(s, row, width, start, stop):
        """Leave no path in these columns."""
        for k in xp.between(start, stop):
            s[np.uintp(row + k)] = one
            s[np.uintp(row + width + k)] = one
            s[np.uintp(row + 2 * width + k)] = empty
            s[np.uintp(row + 3 * width + k)] = empty

    @xp.jit
    def forward(s, before, now, width, skip, start, stop, z_blank):
        """A of frame `now` from that of `before`; `z_blank` is the blank's z - max."""
        q_blank, n_blank = xp.exp_parts(z_blank)
        left, w = np.uintp(1), np.uintp(width)
        old_bm, new_bm = np.uintp(before), np.uintp(now)
        old_lm, old_bn, old_ln = old_bm + w, old_bm + w + w, old_bm + w + w + w
        new_lm, new_bn, new_ln, new_z = new_bm + w, new_bm + w + w, new_bm + w + w + w, new_bm + w + w + w + w
        for column in xp.between(start, stop):
            k = np.uintp(column)
            bm, bn, lm, ln = s[old_bm + k], s[old_bn + k], s[old_lm + k], s[old_ln + k]
            pm, pn = s[old_lm + k - left], s[old_ln + k - left]
            n = larger(bn, pn)
            m, up = xp.parts((bm * xp.power_of_two(bn - n) + pm * xp.power_of_two(pn - n)) * q_blank)
            s[new_bm + k] = m
            s[new_bn + k] = n + n_blank + up
            pn += skip[k]
            n = larger(larger(bn, ln), pn)
            q, n_label = xp.exp_parts(s[new_z + k])
            m = bm * xp.power_of_two(bn - n) + lm * xp.power_of_two(ln - n) + pm * xp.power_of_two(pn - n)
            m, up = xp.parts(m * q)
            s[new_lm + k] = m
            s[new_ln + k] = n + n_label + up

    @xp.jit
    def backward(s, row, width, b, after, now, span, skip, start, stop, z_blank, n_all, share, shares):
        """B·q of frame `now` from that of `after`, and A·B/Z: of the blanks, then (from `width`) of the labels.

        Two loops, because LLVM tests first that what a loop writes overlaps nothing it reads, and has few columns done
        one by one where that is many tests: with 8 labels, all of the loss takes 1.8 instead of 3.5 ms.
        """
        q_blank, n_blank = xp.exp_parts(z_blank)
        right, w, v = np.uintp(1), np.uintp(width), np.uintp(span)
        a_bm = np.uintp(row)
        a_lm, a_bn, a_ln, z = a_bm + w, a_bm + w + w, a_bm + w + w + w, a_bm + w + w + w + w
        old_bm, new_bm = np.uintp(after), np.uintp(now)
        old_lm, old_bn, old_ln = old_bm + v, old_bm + v + v, old_bm + v + v + v
        new_lm, new_bn, new_ln = new_bm + v, new_bm + v + v, new_bm + v + v + v
        for column in xp.between(start, stop):
            k = np.uintp(column)
            bm, bn, lm, ln = b[old_bm + k], b[old_bn + k], b[old_lm + k], b[old_ln + k]
            n = larger(bn, ln)
            m = bm * xp.power_of_two(bn - n) + lm * xp.power_of_two(ln - n)
            shares[k] = s[a_bm + k] * m * xp.power_of_two(s[a_bn + k] + n - n_all) * share
            m, up = xp.parts(m * q_blank)
            b[new_bm + k] = m
            b[new_bn + k] = n + n_blank + up
        for column in xp.between(start, stop):
            k = np.uintp(column)
            lm, ln = b[old_lm + k], b[old_ln + k]
            bm, bn = b[old_bm + k + right], b[old_bn + k + right]
            pm, pn = b[old_lm + k + right], b[old_ln + k + right] + skip[k + right]
            n = larger(larger(bn, ln), pn)
            m = bm * xp.power_of_two(bn - n) + lm * xp.power_of_two(ln - n) + pm * xp.power_of_two(pn - n)
            shares[w + k] = s[a_lm + k] * m * xp.power_of_two(s[a_ln + k] + n - n_all) * share
            q, n_label = xp.exp_parts(s[z + k])
            m, up = xp.parts(m * q)
            b[new_lm + k] = m
            b[new_ln + k] = n + n_label + up

    # Two functions, because LLVM packs their loops for half precision only before they are inlined: 5000 classes in
    # float16 take 4.1 ms instead of 13.4, value and gradient.
    @xp.jit
    def softmax(p, at, top, scale, q):
        for c in xp.span(q.size):
            q[np.uintp(c)] = xp.exp_nonpositive(load(p, at + c) - top) * scale

    @xp.jit
    def write(q, flow, g, at):
        for c in xp.span(q.size):
            store(g, at + c, q[np.uintp(c)] * flow)

    @xp.jit
    def copy(source, at, target, to, size):
        for k in xp.span(size):
            target[np.uintp(to + k)] = source[np.uintp(at + k)]

    @xp.jit
    def fill(g, start, stop, value):
        for k in xp.between(start, stop):
            store(g, k, value)

    def item(
        i,
        p,
        g,
        all_frames,
        classes,
        labels,
        input_lengths,
        label_lengths,
        valid,
        losses,
        flows,
        with_gradient,
        keeps,
        blank,
        zero_infinity,
        most_numbers,
        workspace,
    ):
        # Logits and gradient are flat: a slice in the loop over frames would count an array's references up and down.
        frames, count, sequence = input_lengths[i], label_lengths[i], labels[i]
        origin, beyond = i * all_frames * classes, (i + 1) * all_frames * classes
        losses[i] = nan if valid[i] == 2 else zero
        if valid[i] != 1:
            frames = 0
        flow = zero
        if with_gradient:
            flow = flows[i]
            fill(g, origin + frames * classes, beyond, zero * flow if valid[i] == 1 else losses[i])
        if valid[i] != 1:
            return

        # One column is always spare: its end is the empty left neighbour of the next part's first column.
        width = (count + 1 + lanes) // lanes * lanes
        row, span = 5 * width, width + lanes
        depth = 1
        if with_gradient:
            depth = max(1, frames)
            if depth * row > most_numbers:
                depth = int(xp.sqrt(xp.type(depth))) + 1
        segments = (frames + depth - 1) // depth if with_gradient else 0
        memory, used = workspace[i if xp.shared else 0], 0
        s = xp.scratch(memory, used, (depth + 1) * row)
        used += s.size
        starts = xp.scratch(memory, used, segments * 4 * width if segments > 1 else 0)
        used += starts.size
        tops = xp.scratch(memory, used, frames)
        used += frames
        scales = xp.scratch(memory, used, frames)
        used += frames
        shares = xp.scratch(memory, used, 2 * width)
        used += 2 * width
        q = xp.scratch(memory, used, classes)
        used += classes
        skip = xp.scratch(memory, used, width + 1)
        used += width + 1
        for k in xp.span(width + 1):
            skip[k] = empty
        for k in xp.between(1, count):
            if sequence[k] != sequence[k - 1]:
                skip[k] = zero
        b = xp.scratch(memory, used, 8 * span if with_gradient else 0)

        # Before the first frame, all paths wait in the first blank.
        clear(s, 0, width, 0, width)
        if xp.mine(0):
            s[2 * width] = zero
        slack = frames - count
        total, rescaled = 1.0, 0
        n_all, share = empty, zero
        last, written = 0, 0
        # First all frames forward, then the segments of frames backward, from the last to the first. Each time, the
        # segment's rows are there already or are computed now.
        for turn in range(1 + segments):
            segment = segments - turn
            first, end = (0, frames) if turn == 0 else (segment * depth, min((segment + 1) * depth, frames))
            if turn > 0 and end < frames:
                copy(starts, segment * 4 * width, s, 0, 4 * width)
                xp.meet()
                last = 0
            for t in range(first, end if turn == 0 or end < frames else first):
                at = origin + t * classes
                if turn == 0:
                    top = empty
                    # To a row of its own: the loop that sums is the same for every format then, and so are its bits.
                    for c in xp.span(classes):
                        z = load(p, at + c)
                        q[np.uintp(c)] = z
                        top = xp.greatest(top, z)
                    top = xp.largest(top)
                    tops[t] = top
                    q_sum = zero
                    if keeps:
                        for c in xp.span(classes):
                            q_c = xp.exp_nonpositive(q[np.uintp(c)] - top)
                            store(g, at + c, q_c)
                            q_sum += q_c
                    else:
                        for c in xp.span(classes):
                            q_c = xp.exp_nonpositive(q[np.uintp(c)] - top)
                            q[np.uintp(c)] = q_c
                            q_sum += q_c
                    q_sum = xp.total(q_sum)
                    scales[t] = one / q_sum
                    total *= q_sum
                    if total > large:
                        total /= large
                        rescaled += 1
                    if slack < 0:
                        continue
                    if segments > 1 and t % depth == 0:
                        xp.meet()
                        copy(s, last, starts, t // depth * 4 * width, 4 * width)
                        copy(s, last, s, 0, 4 * width)
                        xp.meet()
                        last = 0
                before = last
                last = before + row if with_gradient else row - before
                # Columns that can be reached, and from which the end can be reached.
                start, stop = max(0, t - slack) // lanes * lanes, min(count, t) // lanes * lanes + lanes
                if t > 0:
                    clear(s, before, width, min(count, t - 1) // lanes * lanes + lanes, stop)
                place = last + 4 * width
                for k in xp.between(start, min(stop, count)):
                    s[np.uintp(place + k)] = load(p, at + sequence[np.uintp(k)]) - tops[t]
                for k in xp.between(max(start, count), stop):
                    s[np.uintp(place + k)] = empty
                xp.meet()
                forward(s, before, last, width, skip, start, stop, load(p, at + blank) - tops[t])
                # The left neighbour; of column 0 that is the spare one of the part before.
                if xp.mine(start - 1 if start > 0 else width - 1):
                    s[last + width + start - 1] = one
                    s[last + 3 * width + start - 1] = empty

            xp.meet()
            if turn == 0:
                if slack >= 0:
                    if count == frames and count > 0:  # nothing can have come to the last blank yet
                        s[last + count] = one
                        s[last + 2 * width + count] = empty
                    n_all = larger(s[last + 2 * width + count], s[last + 3 * width + count - 1])
                if (total != total) | (n_all == empty):
                    losses[i] = nan if total != total else zero if zero_infinity else -empty
                    if with_gradient:
                        fill(g, origin, origin + frames * classes, (nan if total != total else zero) * flow)
                    return
                m_all = s[last + count] * xp.power_of_two(s[last + 2 * width + count] - n_all)
                m_all += s[last + width + count - 1] * xp.power_of_two(s[last + 3 * width + count - 1] - n_all)
                share = one / m_all
                log_all = math.log(np.float64(m_all)) + np.float64(n_all) * ln2
                # Rounding may leave less than the 0 of a certain sequence.
                losses[i] = max(0.0, math.log(total) + rescaled * (512.0 * ln2) - log_all)
                if with_gradient:
                    # After the last frame, all paths have ended in the last blank.
                    for parity in range(2):
                        clear(b, parity * 4 * span, span, 0, span)
                    if xp.mine(count):
                        b[frames % 2 * 4 * span + 2 * span + count] = zero
                continue

            for back in range(end - first):
                t = end - 1 - back
                low, high = max(0, t - slack), min(count, t)
                start, stop = low // lanes * lanes, high // lanes * lanes + lanes
                after, now = (t + 1) % 2 * 4 * span, t % 2 * 4 * span
                clear(b, after, span, start, written)
                at, top, scale = origin + t * classes, tops[t], scales[t]
                z_blank = load(p, at + blank) - top
                reached = (t - first + 1) * row
                xp.meet()
                backward(s, reached, width, b, after, now, span, skip, start, stop, z_blank, n_all, share, shares)
                written = start
                if xp.mine(stop):
                    b[now + stop] = b[now + span + stop] = one
                    b[now + 2 * span + stop] = b[now + 3 * span + stop] = empty
                if keeps:
                    for c in xp.span(classes):
                        q[np.uintp(c)] = load_kept(g, at + c) * scale
                else:
                    softmax(p, at, top, scale, q)
                at_blank = zero
                for k in xp.between(start, stop):
                    at_blank += shares[np.uintp(k)]
                at_blank = xp.total(at_blank)
                if xp.mine(blank):
                    q[blank] -= at_blank
                xp.meet()
                for k in range(low, min(high + 1, count)):
                    c = sequence[np.uintp(k)]
                    if xp.mine(c):
                        q[np.uintp(c)] -= shares[np.uintp(width + k)]
                write(q, flow, g, at)

    return item


def room(frames: int, labels: int, classes: int, most_numbers: int, itemsize: int) -> int:
    """Numbers of a workspace for a sequence of so many frames and labels at most."""
    lanes = 64 // itemsize
    width = (labels + 1 + lanes) // lanes * lanes
    parts = math.isqrt(frames) + 2
    table = max(min(frames * 5 * width, most_numbers), parts * 5 * width) + 5 * width
    return table + parts * 4 * width + 2 * frames + 2 * width + classes + width + 1 + 8 * (width + lanes)
