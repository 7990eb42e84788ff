"""The class-sharded head (Partial FC): margin softmax over classes whose rows lie on many ranks.

`partial_fc.py` is the whole step. `exchange.py` gathers the batch, `class_choice.py` and
`sampling.py` choose the classes that take part, `pass1.py` and `pass2.py` score them chunk by chunk
(on CUDA `triton_passes.py`), `loss.py` joins the ranks, `row_optimizers.py` updates the rows.
"""
