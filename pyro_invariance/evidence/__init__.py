"""Estimates of the evidence, each with its bound side and its errors."""
