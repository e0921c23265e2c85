"""Problem files, generated tasks and the seeded order in which they are trained on. No torch."""
