"""Rows into examples, one data set a file."""
