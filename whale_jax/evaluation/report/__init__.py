"""The report: its page, films and figures."""
