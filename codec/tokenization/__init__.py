"""Lists of recordings -> codes of a whole corpus in a few large files."""
