"""The ruler: how long value and gradient take, beside other libraries and beside what the machine allows.

``fastloss bench`` runs all of it; `cases`, `limits` and `timing` serve the suites in ``benchmarks/`` too, and need
nothing beyond the package itself.
"""
