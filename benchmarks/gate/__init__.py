"""The regression gate: every kernel of this tree against those of an earlier revision, built in the same run."""
