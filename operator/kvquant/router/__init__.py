"""The Envoy router: bootstrap and the xDS server that drives its weights."""
