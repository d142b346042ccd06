"""What a gate says: in the terminal, as Markdown, as JUnit XML."""
