"""How the operator learns which alerts fire: from Alertmanager, or by asking Prometheus."""
