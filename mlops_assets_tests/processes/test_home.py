"""A home that cannot be used is one sentence, in every command."""
