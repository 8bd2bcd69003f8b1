"""The report: one self-contained HTML file about one attempt of a rollout."""
