"""The same jobs on many machines, with Ray: scoring, the paper's runs, data-parallel training (extra `ray`)."""
