"""`make torture`: what the program promises, tried by force. `python -m benchmarks.torture --help` lists the parts."""
