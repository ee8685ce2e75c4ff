"""The sample's real data, landed as a nightly feed would land it."""
