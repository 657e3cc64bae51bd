"""asv suite of other libraries, where the environment has them: the same losses, the same arrays, two threads."""

from __future__ import annotations

import os

from fastloss.bench import machine

THREADS = min(2, machine.cores())
os.environ.update(machine.environment(THREADS, "float32"))  # before any of them is imported

from fastloss.bench.cases import LARGE, SMALL, cases, shapes  # noqa: E402
from fastloss.bench.measure import reference, verdict  # noqa: E402
from fastloss.bench.peers import PEERS, Task, missing  # noqa: E402

CASES = {case.label: case for case in cases()}


class Peers:
    """A value and gradient of a small and of a large batch."""

    params = (list(CASES), list(PEERS), ["small", "large"])
    param_names = ("loss", "peer", "batch")

    def setup(self, label, peer, batch):
        case = CASES[label]
        chosen, _ = shapes(case, (SMALL if batch == "small" else LARGE,))
        if missing(peer) or not chosen:
            raise NotImplementedError  # asv's word for: not here
        task = Task(case, chosen[0], "float32", THREADS, *case.inputs(chosen[0], "float32"))
        contestant = PEERS[peer].make(task)
        if contestant is None or verdict(contestant, reference(task), "float32"):
            raise NotImplementedError
        self.call = contestant.run

    def time_value_and_grad(self, label, peer, batch):
        self.call()
