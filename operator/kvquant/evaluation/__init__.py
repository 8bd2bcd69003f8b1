"""Offline evaluation: a set of examples, asked of both arms, and what the answers show."""
