"""A real Kubernetes on this machine, without a container engine: for the demo and the tests.

It is never shipped. `python -m kvlocal --help` says what it can do.
"""
