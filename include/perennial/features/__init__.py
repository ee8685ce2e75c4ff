"""`features.sql` and its engine, reference tables, the log of served features, rows joined with their labels."""
