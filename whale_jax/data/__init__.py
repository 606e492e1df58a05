"""Where robot experience comes from: the only package that knows file formats."""
