"""Tables of the paper as data, the runs that reproduce them, and comparisons of both."""
