"""What experiments are judged by: a model's files, curves, published values, stages."""
