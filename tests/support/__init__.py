"""Helpers that several test folders share: small models and their data, servers, processes that can be killed."""
