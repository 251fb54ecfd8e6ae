"""A catalog without diffusion: numbers that are made, added and multiplied, to test the engine."""
