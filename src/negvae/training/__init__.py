"""The paper's losses as pure functions, one training loop, and exact resumption from checkpoints."""
