"""The work behind the commands (train, calibrate, evaluate, score, export), and the run folder that they share."""
