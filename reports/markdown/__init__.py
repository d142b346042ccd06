"""The Markdown summary, for a pull request."""
