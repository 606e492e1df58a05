"""The evaluation of the model's futures: suites, films and the report."""
