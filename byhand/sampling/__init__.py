"""From logits to a token: the parameters, the chain of stages, the dice, and the numbers around one choice."""
