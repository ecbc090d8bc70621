"""What the paper does to a model: each method from key vectors or pre-activations to what a checkpoint holds."""
