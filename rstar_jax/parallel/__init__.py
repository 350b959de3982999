"""Meshes and the launch on several hosts."""
