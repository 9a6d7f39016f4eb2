"""Other libraries' products with packed weights as backends, so that the conformance suite can be run on them.

Each module has the construction that its library wants, which benchmarks/peers times, and a backend around it. They are
for comparison: a call converts and copies what the library's own users would not.
"""
