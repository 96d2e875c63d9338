"""Generators of training graphs behind one interface: from a forward model to an artifact directory."""
