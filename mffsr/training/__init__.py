"""The paper's training: synthetic brackets, degradations, losses, the three stages and the loop."""
