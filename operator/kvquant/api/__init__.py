"""The KVQuantRollout API: models, CRD generator, conditions. Pure."""
