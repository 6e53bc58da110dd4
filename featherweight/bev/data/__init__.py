"""What there is to learn from: readers of data sets, classes, splits, labels."""
