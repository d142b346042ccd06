"""The HTML report: one file with charts, tables and the data itself."""
