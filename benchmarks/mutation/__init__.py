"""`make mutation`: mutants of the package's mathematics, drawn at random, that the tests must notice."""
