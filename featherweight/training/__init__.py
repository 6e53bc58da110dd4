"""Training: recipes, the loop, checkpoints, and runs that leave a folder with everything one needs to judge and repeat them."""
