"""`backtest`: what the analysis would have decided over a stretch of the user's own past."""
