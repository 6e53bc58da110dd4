"""A camera that looks at the arm: cards that it finds, and what they tell of the joints' zero and of its own place."""
