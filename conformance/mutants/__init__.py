"""Seeded faults: whether the conformance suite notices that a backend, or what stands before it, is wrong.

``python -m conformance.mutants`` puts one fault at a time into a copy of the sources, builds what changed and runs the
suite with the profile ``ci`` on the targets that the fault affects. `faults/` has the faults, as data.
"""
