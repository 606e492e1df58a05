"""What the model's futures are worth: video metrics, films and the report."""
