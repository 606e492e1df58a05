"""The page, films and figures of the report."""
