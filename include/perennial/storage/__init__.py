"""Where data and records lie: objects, Delta tables, landed files, locks, manifests, the ledger."""
