"""Tests that need a GPU, or that drive the product on one."""
