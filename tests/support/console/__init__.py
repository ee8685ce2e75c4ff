"""A lake with models of every state, for the pages about them."""
