"""The checks: a chapter for each section of docs/numerics.md, and chapters on the protocol that they share."""
