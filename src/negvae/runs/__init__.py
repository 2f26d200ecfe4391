"""What the commands carry out: train, calibrate, evaluate, score and export, and the folder that they share."""
