"""`dataset`: example sets, drawn from the shadow log or brought from other formats."""
