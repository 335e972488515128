"""Images, their classes, and how they are split."""
