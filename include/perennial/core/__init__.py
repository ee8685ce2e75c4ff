"""What every other package may use: errors, settings, dates, SQL and HTML text, the process."""
