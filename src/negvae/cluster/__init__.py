"""Scoring, the paper's runs and data-parallel training on many machines, with Ray (extra `ray`)."""
