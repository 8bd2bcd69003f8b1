"""The demo: a good canary is promoted and a bad one rolled back, on a real cluster, under load."""
