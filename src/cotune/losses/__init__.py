"""Pure tensor functions, one a file; each says its KIND, which fixes how its `loss` is called.

divergence: loss(student logits, teacher signal, temperature), a value for each position.
preference: loss(trained sums, reference sums, beta), a value for each pair of texts; and `margin`.
"""
