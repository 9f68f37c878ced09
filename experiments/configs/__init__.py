"""One experiment per file: `config()` and a docstring with the command and what to expect."""
