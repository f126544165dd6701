"""The zoo: one generative model with its symmetry hypotheses per file; see README.md for the contract."""
