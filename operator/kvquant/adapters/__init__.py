"""The only importers of the Kubernetes and Prometheus clients."""
