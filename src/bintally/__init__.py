"""Counts the items in photographs of storage bins and finds the bins that disagree with their record."""
