"""From landed files to published rows and labels, with the rest put into quarantine."""
