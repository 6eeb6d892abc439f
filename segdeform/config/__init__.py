"""What changes a result: the config's schema, how its files are read, and strict YAML."""
