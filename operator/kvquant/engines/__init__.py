"""One module an engine: how to recognise it, its arguments for a dtype, what it can prove."""
