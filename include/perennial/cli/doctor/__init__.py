"""`perennial doctor`: whether everything outside is there that the nights will need."""
