"""How the embedded model was made: data, tokenizer, training and evaluation."""
