"""The verb `eval`: an example set, asked of both arms."""
