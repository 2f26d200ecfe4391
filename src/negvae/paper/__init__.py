"""The paper's tables: as data, the runs behind them, and both side by side."""
